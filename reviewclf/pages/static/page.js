"use strict";

const main = document.getElementById("main");
const status = document.getElementById("status");
const MESSAGE = "reviewclf.message";

// Times in the reader's own zone and language.
const language = document.documentElement.lang;
const short = new Intl.DateTimeFormat(language, { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit" });
const long = new Intl.DateTimeFormat(language, { dateStyle: "full", timeStyle: "long" });
for (const element of document.querySelectorAll("time")) {
  const moment = new Date(element.dateTime);
  if (Number.isNaN(moment.getTime())) continue;
  element.textContent = short.format(moment);
  element.title = long.format(moment);
}

// What was done before the page was loaded anew is said now, where a screen reader hears it.
const message = sessionStorage.getItem(MESSAGE);
if (message && status) {
  sessionStorage.removeItem(MESSAGE);
  status.textContent = message;
  status.focus();
}

for (const link of document.querySelectorAll("[data-language]")) {
  link.addEventListener("click", () => {
    localStorage.setItem("reviewclf.language", link.dataset.language);
    document.cookie = `reviewclf_language=${link.dataset.language}; Path=/; Max-Age=31536000; SameSite=Lax`;
  });
}

document.getElementById("version")?.addEventListener("change", (event) => event.target.form.requestSubmit());

// Airflow frames the page without the right to open windows; its own document, of the same origin, has it.
for (const link of document.querySelectorAll("a.leave")) {
  link.addEventListener("click", (event) => {
    if (window.parent === window) return;
    let outside;
    try {
      outside = window.parent.document;
    } catch {
      return;
    }
    event.preventDefault();
    const opener = outside.createElement("a");
    Object.assign(opener, { href: link.href, target: "_blank", rel: "noopener" });
    opener.click();
  });
}

for (const button of document.querySelectorAll("[data-opens]")) {
  const dialog = document.getElementById(button.dataset.opens);
  button.addEventListener("click", () => dialog?.showModal());
}

for (const dialog of document.querySelectorAll("dialog")) {
  const form = dialog.querySelector("form");
  const reason = form.elements.reason;
  const error = dialog.querySelector(".error");
  const submit = form.querySelector("[type=submit]");
  const label = submit.textContent;

  const refuse = (text) => {
    error.textContent = text;
    reason.setAttribute("aria-invalid", String(Boolean(text) && !reason.value.trim()));
  };
  const work = (busy) => {
    submit.disabled = busy;
    submit.textContent = busy ? submit.dataset.working : label;
    dialog.setAttribute("aria-busy", String(busy));
  };

  dialog.querySelector("[data-close]").addEventListener("click", () => dialog.close());
  dialog.addEventListener("close", () => refuse(""));
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (submit.disabled) return;
    if (!reason.value.trim()) {
      refuse(main.dataset.errorReason);
      reason.focus();
      return;
    }
    refuse("");
    work(true);
    const action = { reason: reason.value, champion: main.dataset.champion || null };
    if (dialog.dataset.action === "promote") action.version = dialog.dataset.version;
    try {
      const answer = await fetch(`${main.dataset.base}/promotion/${dialog.dataset.action}`, {
        method: "POST",
        credentials: "same-origin",
        headers: { "Content-Type": "application/json", Accept: "application/json", "X-Reviewclf-Action": "1" },
        body: JSON.stringify(action),
      });
      const said = await answer.json();
      if (!answer.ok) throw new Error(said.error || main.dataset.errorNetwork);
      sessionStorage.setItem(MESSAGE, said.message);
      location.assign(location.pathname);
    } catch (problem) {
      refuse(problem instanceof TypeError || problem instanceof SyntaxError ? main.dataset.errorNetwork : problem.message);
      work(false);
    }
  });
}
