"use strict";
// Counts the time down, and fetches questions that came since. Without it, the page is whole and loads itself again.
(() => {
  const EVERY_MS = 3000;
  const list = document.getElementById("waiting");
  const live = document.getElementById("live");
  const lost = document.getElementById("lost");
  let behind = Number(list.dataset.now) - Date.now(); // by how much this machine's clock is off
  let failures = 0;

  function left(ms) {
    const seconds = Math.max(0, Math.floor(ms / 1000));
    if (seconds < 60) return `${seconds} s`;
    if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
    if (seconds < 48 * 3600) return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
    return `${Math.floor(seconds / 86400)} days`;
  }

  function count() {
    for (const time of list.querySelectorAll("time[data-ends]")) {
      const rest = Number(time.dataset.ends) - Date.now() - behind;
      time.textContent = left(rest);
      time.parentElement.toggleAttribute("data-soon", rest < 60000);
    }
  }

  function cards() {
    return Array.from(list.querySelectorAll("article.ask"));
  }

  function isInUse(card) {
    return card.contains(document.activeElement) || Array.from(card.querySelectorAll("textarea"), (box) => box.value).some(Boolean);
  }

  function close(card) {
    if (!isInUse(card)) return card.remove();
    if (card.dataset.closed !== undefined) return;
    card.dataset.closed = "";
    for (const button of card.querySelectorAll("button")) button.disabled = true;
    const note = document.createElement("p");
    note.className = "told";
    note.dataset.state = "unchecked";
    note.textContent = "This waits no more: somebody answered, or its time is over.";
    card.append(note);
  }

  // the browser reads the page as a document, in which no script runs
  function fetchPage() {
    return new Promise((done, fail) => {
      const request = new XMLHttpRequest();
      request.responseType = "document";
      request.open("GET", "/");
      request.onload = () => (request.status === 200 && request.response ? done(request.response) : fail(new Error("no page")));
      request.onerror = () => fail(new Error("no answer"));
      request.send();
    });
  }

  async function add(waiting) {
    const known = new Set(cards().map((card) => card.id));
    if (waiting.every((id) => known.has(`ask-${id}`))) return;
    const page = await fetchPage();
    const added = [];
    let before = null;
    for (const card of Array.from(page.querySelectorAll("#waiting > article.ask")).reverse()) {
      const here = document.getElementById(card.id);
      if (here !== null) {
        before = here;
        continue;
      }
      const fresh = document.adoptNode(card);
      fresh.classList.add("fresh");
      list.insertBefore(fresh, before);
      before = fresh;
      added.unshift(`${fresh.dataset.name}, asked by ${fresh.dataset.agent}`);
    }
    if (added.length > 0) live.textContent = `${added.length} new: ${added.join("; ")}`;
  }

  function tell(problem) {
    lost.hidden = problem === "";
    if (lost.textContent !== problem) lost.textContent = problem;
  }

  async function look() {
    const answer = await fetch("/waiting", { cache: "no-store", redirect: "error" });
    if (answer.status === 401) {
      tell("Your login has ended. Load the page again to log in.");
      return false;
    }
    if (!answer.ok) throw new Error("no answer");
    const { waiting, count: all, now_ms: now } = await answer.json();
    behind = now - Date.now();
    await add(waiting);
    const open = new Set(waiting.map((id) => `ask-${id}`));
    for (const card of cards()) if (!open.has(card.id)) close(card);
    document.getElementById("count").textContent = `${all} waiting`;
    document.getElementById("none").hidden = cards().length > 0;
    document.title = `${all > 0 ? `(${all}) ` : ""}Approvals · CRA`;
    tell("");
    return true;
  }

  async function keepLooking() {
    let goOn = true;
    try {
      goOn = await look();
      failures = 0;
    } catch {
      failures += 1;
      if (failures > 2) tell("The server does not answer; what you see may be old.");
    }
    if (goOn) setTimeout(keepLooking, EVERY_MS * Math.min(1 + failures, 10));
  }

  setInterval(count, 1000);
  if (list.dataset.one === undefined) setTimeout(keepLooking, EVERY_MS);
})();
