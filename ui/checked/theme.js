// Before the first paint, so that a page in the dark does not flash white.
const theme = localStorage.getItem("aflow.theme");
if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
