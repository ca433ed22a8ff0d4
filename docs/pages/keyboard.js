// Let the keyboard reach what scrolls sideways; the buttons of a code block are no landmark.
function reachable() {
  document.querySelectorAll(".md-typeset__scrollwrap, pre > code").forEach((scrolling) => {
    scrolling.tabIndex = 0;
  });
  document.querySelectorAll(".md-code__nav").forEach((buttons) => buttons.setAttribute("role", "none"));
}
new MutationObserver(reachable).observe(document.documentElement, { childList: true, subtree: true });
