"use strict";
// An element with data-live="ADDRESS" is replaced by what the server sends, if it has changed. Details that a person has
// opened stay open, and what has the focus keeps it.
(() => {
  const RETRY_MS = 30000;

  const replace = (element, html) => {
    const open = [...element.querySelectorAll("details[open][id]")].map((one) => one.id);
    const focused = element.contains(document.activeElement) ? document.activeElement.id : "";
    element.innerHTML = html;
    for (const id of open) document.getElementById(id)?.setAttribute("open", "");
    if (focused) document.getElementById(focused)?.focus();
    window.htmx?.process(element);
  };

  const watch = (element) => {
    const source = new EventSource(element.dataset.live);
    source.onmessage = (message) => {
      element.removeAttribute("data-stale");
      if (element.dataset.last !== message.data) replace(element, message.data);
      element.dataset.last = message.data;
    };
    source.onerror = () => {
      element.setAttribute("data-stale", "");
      if (source.readyState === EventSource.CLOSED) setTimeout(() => watch(element), RETRY_MS);
    };
    addEventListener("pagehide", () => source.close());
  };

  document.addEventListener("DOMContentLoaded", () => document.querySelectorAll("[data-live]").forEach(watch));
})();
