// Within Airflow's frame HTML alone can neither follow Airflow's colour mode nor leave the frame. Outside of it, and
// without scripts, links work as they are and the colour mode is that of the browser.
"use strict";
const outer = window.parent;
if (outer !== window) {
  const root = outer.document.documentElement;
  const follow = () => { document.documentElement.dataset.theme = root.classList.contains("dark") ? "dark" : "light"; };
  new MutationObserver(follow).observe(root, { attributes: true, attributeFilter: ["class"] });
  follow();
  document.addEventListener("click", (event) => {
    const link = event.target.closest("a[data-airflow]");
    if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    outer.history.pushState(null, "", link.href);
    outer.dispatchEvent(new PopStateEvent("popstate", { state: null }));
  });
}
