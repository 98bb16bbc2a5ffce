// Runs before anything is drawn. Airflow keeps its theme ("light", "dark" or "system") and its language in localStorage of the
// same origin; the page follows both. Without them it follows the system and the browser.
(() => {
  "use strict";
  const stored = (name) => {
    try {
      return localStorage.getItem(name);
    } catch {
      return null;
    }
  };
  const root = document.documentElement;
  const follow = () => {
    const theme = stored("theme");
    if (theme === "light" || theme === "dark") root.dataset.theme = theme;
    else delete root.dataset.theme;
  };
  follow();
  if (window.parent !== window) root.dataset.framed = "";
  addEventListener("storage", (event) => {
    if (event.key === "theme" || event.key === null) follow();
  });

  // What the person chose here wins over Airflow's language. The server reads the cookie, so the page comes in it next time.
  const wanted = (stored("reviewclf.language") || stored("i18nextLng") || "").split("-")[0];
  const cookie = /(?:^|; )reviewclf_language=(\w+)/.exec(document.cookie);
  if ((wanted === "en" || wanted === "ru") && (!cookie || cookie[1] !== wanted)) {
    document.cookie = `reviewclf_language=${wanted}; Path=/; Max-Age=31536000; SameSite=Lax`;
    const kept = document.cookie.includes(`reviewclf_language=${wanted}`);
    if (kept && root.lang !== wanted && !new URLSearchParams(location.search).has("lang")) location.reload();
  }
})();
