-- Queries for DuckDB on a dataset that was exported with `retro-ops export --format parquet --to exported`:
--   cd exported && duckdb < PATH_OF_THIS_FILE

-- Chunks of each category, and how near their nearest neighbour is.
select category, count(*) as chunks, round(avg(distances[1]), 3) as mean_distance
from read_parquet('train/*.parquet', union_by_name = true)
group by category order by chunks desc;

-- In which category the chunks of each category find their nearest neighbour.
select row.category, neighbour.category as nearest, count(*) as chunks
from read_parquet('train/*.parquet', union_by_name = true) as row
join read_parquet('train/*.parquet', union_by_name = true) as neighbour on neighbour.id = row.neighbours[1]
group by all order by chunks desc limit 10;

-- A chunk beside its nearest neighbour, nearest pairs first.
select round(row.distances[1], 3) as distance, row.text[:60] as text, neighbour.text[:60] as nearest
from read_parquet('train/*.parquet', union_by_name = true) as row
join read_parquet('train/*.parquet', union_by_name = true) as neighbour on neighbour.id = row.neighbours[1]
order by row.distances[1] limit 5;

-- Licences of the documents.
select license, count(*) as documents from 'documents/*.parquet' group by license order by documents desc;
