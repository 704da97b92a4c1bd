// Sets the theme before the first paint, so that a dark page does not flash white.
const theme = localStorage.getItem("aflow.theme");
if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
