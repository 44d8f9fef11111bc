"use strict";
// On a phone the filters are folded away until they are asked for. Without this script they are simply there.
document.addEventListener("DOMContentLoaded", () => {
  for (const button of document.querySelectorAll("[data-more]")) {
    const form = document.getElementById(button.dataset.more);
    const fold = (folded) => {
      form.classList.toggle("folded", folded);
      button.setAttribute("aria-expanded", String(!folded));
    };
    fold(!form.querySelector("select option:checked:not([value=''])"));
    button.addEventListener("click", () => fold(!form.classList.contains("folded")));
  }
});
