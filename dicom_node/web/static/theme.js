"use strict";
// Light, dark or as the system says. Runs before the page is drawn, so that nothing flashes.
(() => {
  const root = document.documentElement;
  let kept = null;
  try { kept = localStorage.getItem("theme"); } catch { /* storage is switched off */ }
  if (kept === "light" || kept === "dark") root.dataset.theme = kept;
  const isLight = () => root.dataset.theme === "light" ||
    (!root.dataset.theme && matchMedia("(prefers-color-scheme: light)").matches);
  document.addEventListener("click", (event) => {
    if (!event.target.closest("[data-theme-switch]")) return;
    root.dataset.theme = isLight() ? "dark" : "light";
    try { localStorage.setItem("theme", root.dataset.theme); } catch { /* this page only */ }
  });
  // On a phone the entries of the navigation do not all fit: show where one is.
  document.addEventListener("DOMContentLoaded", () => {
    const nav = document.querySelector(".top nav"), here = nav?.querySelector("[aria-current]");
    if (here) nav.scrollLeft = here.offsetLeft - nav.offsetLeft - (nav.clientWidth - here.clientWidth) / 2;
  });
})();
