// What spares a reload. Every page works without it.
"use strict";

const POLL_MS = 1000;

// The parts that the server renders anew when it is asked: the sidebar and the conversation.

function fieldsOf(root) {
  const fields = new Map();
  for (const field of root.querySelectorAll(".card:not(.nested) > dl > .field")) {
    const card = field.closest(".card").getAttribute("aria-label");
    fields.set(`${card} ${field.dataset.path}`, field);
  }
  return fields;
}

function showChanges(before, part) {
  const spoken = [];
  for (const [key, field] of fieldsOf(part)) {
    const value = field.querySelector("dd").textContent.trim();
    if (before.has(key) && before.get(key) !== value) {
      field.classList.add("changed");
      spoken.push(`${field.querySelector("dt").textContent.trim()}: ${value || "empty"}`);
    }
  }
  if (spoken.length) document.getElementById("changes").textContent = spoken.join(", ");
}

function replacePart(part, html, etag) {
  const before = new Map([...fieldsOf(part)].map(([key, field]) => [key, field.querySelector("dd").textContent.trim()]));
  const focused = part.contains(document.activeElement) ? document.activeElement.id : "";
  const scroll = part.closest(".scroll");
  const atEnd = scroll && scroll.scrollHeight - scroll.scrollTop - scroll.clientHeight < 80;
  part.innerHTML = html;
  part.dataset.etag = etag;
  if (focused) document.getElementById(focused)?.focus();
  if (atEnd) scroll.scrollTop = scroll.scrollHeight;
  if (part.id === "sidebar") showChanges(before, part);
}

async function refresh(part) {
  const answer = await fetch(part.dataset.live, { headers: { "If-None-Match": part.dataset.etag }, redirect: "error" });
  if (answer.status !== 200) return;
  const html = await answer.text();
  // A dialog may have been opened while the answer was on its way: what an agent types must not vanish.
  if (!document.querySelector("dialog[open]")) replacePart(part, html, answer.headers.get("ETag"));
}

async function refreshAll() {
  if (document.visibilityState !== "visible" || document.querySelector("dialog[open]")) return;
  await Promise.allSettled([...document.querySelectorAll("[data-live]")].map(refresh));
}

async function poll() {
  await refreshAll();
  setTimeout(poll, POLL_MS);
}

// Buttons of cards. A second click is not held back: an integration has to cope with one, in Gorgias too.

async function run(form) {
  const dialog = form.closest("dialog");
  const progress = form.querySelector(".progress");
  if (progress) progress.textContent = "Running…";
  const outcome = document.getElementById("outcome");
  try {
    const answer = await fetch(form.action, {
      method: "POST",
      body: new URLSearchParams(new FormData(form)),
      headers: { "X-Requested-With": "fetch" },
      redirect: "error",
    });
    if (!answer.ok) throw new Error(`status ${answer.status}`);
    outcome.innerHTML = await answer.text();
  } catch {
    // Not this script's to explain: the page says what is wrong (signed out, button gone, helpdesk stopped).
    location.reload();
    return;
  }
  dialog?.close();
  if (progress) progress.textContent = "";
  await refreshAll();
}

async function insertMacro(form) {
  const macroId = form.elements.macro_id.value;
  if (!macroId) return;
  const answer = await fetch(`${form.dataset.macro}?macro_id=${encodeURIComponent(macroId)}`, { redirect: "error" });
  if (!answer.ok) return;
  const box = form.elements.text;
  box.setRangeText(await answer.text(), box.selectionStart, box.selectionEnd, "end");
  box.focus();
}

document.addEventListener("submit", (event) => {
  const form = event.target;
  if (form.dataset.dialog) {
    event.preventDefault();
    const dialog = document.getElementById(form.dataset.dialog);
    dialog.querySelector("form").reset();
    dialog.showModal();
  } else if ("run" in form.dataset) {
    event.preventDefault();
    run(form);
  } else if (form.id === "reply" && event.submitter?.value === "insert") {
    event.preventDefault();
    insertMacro(form);
  }
});

document.addEventListener("click", (event) => {
  if (event.target.closest("[data-close]")) event.target.closest("dialog").close();
});

const conversation = document.querySelector(".scroll");
if (conversation) conversation.scrollTop = conversation.scrollHeight;
if (document.querySelector("[data-live]")) setTimeout(poll, POLL_MS);
