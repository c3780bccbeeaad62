"use strict";
// Checks the page against the lines in it. RULES, before this, is what the rows were filled from (wording.py).
(() => {
  const ID = "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}";
  const HEAD = new RegExp(
    `^\\{"trace_version":"1\\.0","event_id":"(${ID})","trace_id":"(${ID})","span_id":"(${ID})",` +
      `"parent_span_id":(?:null|"(${ID})"),"session_id":"(${ID})","sequence":(0|[1-9][0-9]{0,15}),` +
      `"timestamp":"(\\d{4}-\\d\\d-\\d\\dT\\d\\d:\\d\\d:\\d\\d\\.\\d{3}(?!000)\\d{3}\\+00:00)",` +
      `"event_type":"([a-z.]{1,64})","payload":(?=\\{)`
  );
  const TAIL = /^,"event_hash":"([0-9a-f]{64})","previous_event_hash":"([0-9a-f]{64})"\}$/;
  const TAIL_LENGTH = ',"event_hash":"","previous_event_hash":""}'.length + 128;
  const ODD = RULES.odd.map(([first, last]) => `\\u{${first.toString(16)}}-\\u{${last.toString(16)}}`).join("");
  const EACH_ODD = new RegExp(`[${ODD}]`, "gu");

  class Fault extends Error {
    constructor(message, body) {
      super(message);
      this.body = body;
    }
  }

  function demand(condition, message, body) {
    if (!condition) throw new Fault(message, body);
  }

  function parse(line, body) {
    const head = HEAD.exec(line);
    const tail = TAIL.exec(line.slice(-TAIL_LENGTH));
    demand(head && tail, "a line is not an event in the exact form of TRACE 1.0", body);
    const text = line.slice(head[0].length, -TAIL_LENGTH);
    const [, id, trace, span, parent, session, sequence, timestamp, kind] = head;
    let payload;
    try {
      payload = JSON.parse(text);
    } catch {
      throw new Fault(`event ${sequence}: its payload is not JSON`, body);
    }
    demand(RULES.kinds.includes(kind), `event ${sequence}: its type is not one of the protocol's`, body);
    const [, hash, previous] = tail;
    const hashed = ["1.0", id, trace, span, parent ?? "", session, sequence, timestamp, kind, text, previous].join("");
    return { id, span, session, sequence: Number(sequence), timestamp, kind, payload, hash, previous, hashed, line, body };
  }

  async function sha256(text) {
    const bytes = await crypto.subtle.digest("SHA-256", new TextEncoder().encode(text));
    return Array.from(new Uint8Array(bytes), (byte) => byte.toString(16).padStart(2, "0")).join("");
  }

  async function checkChain(events, entry) {
    const ids = new Set();
    let head = RULES.genesis;
    for (const [place, event] of events.entries()) {
      const at = `event ${place}`;
      const last = place === events.length - 1;
      demand(event.sequence === place, `${at} is missing, or is there twice`, event.body);
      demand(event.session === entry.id, `${at} belongs to another session`, event.body);
      demand(event.previous === head, `${at} does not follow: something was removed, moved or changed`, event.body);
      demand((await sha256(event.hashed)) === event.hash, `${at} was changed after it was written`, event.body);
      demand(!ids.has(event.id), `${at} has the id of another event`, event.body);
      demand((place === 0) === (event.kind === "session.started"), `${at}: session.started must be the first`, event.body);
      demand(last || event.kind !== "session.ended", `events follow after the session's end, ${at}`, event.body);
      ids.add(event.id);
      head = event.hash;
    }
    demand(events.length === entry.events, `there are ${events.length} events where ${entry.events} were recorded`);
    demand(head === entry.head, "the last hash is not the one that the page was made with");
  }

  function value(given) {
    if (typeof given === "string") return given;
    if (typeof given === "boolean") return String(given);
    if (typeof given === "number") {
      const size = Math.abs(given);
      return size === 0 ? "0" : size >= RULES.minFraction && size < RULES.maxNumber ? String(given) : "a number out of range";
    }
    return Array.isArray(given) ? given.map(value).filter(Boolean).join(", ") : "";
  }

  function at(payload, path) {
    const inside = (given, key) => given !== null && typeof given === "object" && !Array.isArray(given) && Object.hasOwn(given, key);
    return path.split(".").reduce((given, key) => (inside(given, key) ? given[key] : undefined), payload);
  }

  function escaped(char) {
    return `\\u{${char.codePointAt(0).toString(16)}}`;
  }

  function plain(text) {
    if (text.length > RULES.maxText) {
      const points = Array.from(text);
      const rest = points.length - RULES.maxText;
      if (rest > 0) text = `${points.slice(0, RULES.maxText).join("")} … (${rest} more characters)`;
    }
    return text.replace(EACH_ODD, escaped);
  }

  function filled(templates, payload) {
    const found = [];
    for (const template of templates ?? []) {
      let whole = true;
      const text = template.replace(/\{([a-z_.]+)\}/g, (_, key) => {
        const given = value(at(payload, key));
        whole &&= given !== "";
        return plain(given);
      });
      if (whole) found.push(text);
    }
    return found;
  }

  function table(event) {
    const special = `${event.kind}:${event.payload.effect}`;
    return RULES.events[Object.hasOwn(RULES.events, special) ? special : event.kind];
  }

  function folded(events) {
    const rows = [];
    const open = new Map();
    for (const event of events) {
      const call = open.get(event.span);
      if (call && RULES.joins.includes(event.kind)) {
        call.events.push(event);
        if (RULES.ends.includes(event.kind)) {
          call.waiting = false;
          open.delete(event.span);
        }
        continue;
      }
      const row = { events: [event], waiting: event.kind === RULES.begins };
      if (row.waiting) {
        if (call) call.waiting = false;
        open.set(event.span, row);
      }
      rows.push(row);
    }
    return rows;
  }

  function rows(events) {
    let day = "";
    return folded(events).map((row) => {
      const columns = Object.fromEntries(RULES.columns.map((column) => [column, []]));
      let look = "other";
      for (const [place, event] of row.events.entries()) {
        for (const [column, lines] of Object.entries(columns)) {
          if (column === "what" && place > 0) continue;
          const fresh = filled(table(event)[column], event.payload).filter((line) => !lines.includes(line));
          lines.push(...fresh);
        }
        look = table(event).look?.[0] ?? look;
      }
      if (row.waiting && columns.outcome.length === 0) {
        columns.outcome.push(RULES.unfinished[Object.hasOwn(RULES.unfinished, look) ? look : ""]);
      }
      const [date, time] = moment(row.events[0].timestamp);
      const shown = date === day ? time : `${date}\n${time}`;
      day = date;
      const cells = [shown, ...RULES.columns.map((column) => columns[column].join("\n"))];
      const raw = row.events.map((event) => [`${event.sequence} · ${event.kind} · ${event.hash}`, event.line]);
      return { look, cells, summary: `Recorded as ${row.events.map((event) => event.sequence).join(", ")}`, raw };
    });
  }

  function moment(timestamp) {
    return [timestamp.slice(0, 10), timestamp.slice(11, 23)];
  }

  function texts(elements) {
    return Array.from(elements, (element) => element.textContent);
  }

  function same(one, other) {
    return JSON.stringify(one) === JSON.stringify(other);
  }

  function shownRow(body) {
    const [cells, raw] = body.rows;
    const details = raw?.cells[0]?.firstElementChild;
    const [summary, ...parts] = details?.children ?? [];
    const pairs = [];
    for (let place = 0; place < parts.length; place += 2) pairs.push(texts(parts.slice(place, place + 2)));
    const nested = Array.from(cells?.cells ?? []).some((cell) => cell.childElementCount > 0);
    demand(body.rows.length === 2 && summary && !nested, "a row of the timeline was changed", body);
    return { look: body.className, cells: texts(cells.cells), summary: summary.textContent, raw: pairs };
  }

  // The odd characters of a line are isolated in elements that show an escape; what they show must be what they hold.
  function checkMarks(section) {
    for (const mark of section.querySelectorAll("pre.line *")) {
      const right = mark.localName === "i" && Array.from(mark.textContent).length === 1;
      demand(right && mark.dataset.as === escaped(mark.textContent), "a raw line does not show what it holds", mark.closest("tbody"));
    }
  }

  function checkRows(expected, bodies, shown) {
    for (const [place, row] of expected.entries()) {
      demand(place < shown.length, "the timeline lacks a row that the lines give");
      const name = `row ${place + 1} of the timeline (event ${row.raw[0][0].split(" ")[0]})`;
      demand(same(shown[place], row), `${name} does not show what the lines say`, bodies[place]);
    }
    demand(expected.length === shown.length, "the timeline has a row that no line gives", bodies[expected.length]);
  }

  function verdict(events) {
    const sealed = events.at(-1).kind === "session.ended";
    const torn = events.filter((event) => event.kind === "error.occurred" && event.payload.error_code === "torn_tail_recovered");
    const bytes = torn.reduce((sum, event) => sum + event.payload.bytes, 0);
    const end = sealed ? "SEALED" : "NOT SEALED: the end may be missing";
    return `INTACT, ${end}${torn.length ? `, RECOVERED (${bytes} torn bytes set aside)` : ""}`;
  }

  function checkWords(section, row, entry, facts, agent, started) {
    const summary = [entry.id, agent || "–", started, String(entry.events), entry.verdict];
    demand(same(texts(row.cells).slice(0, -1), summary), "its row in the table of sessions does not say what the lines say");
    demand(section.querySelector("h2").textContent === `Session ${entry.id}`, "its title was changed");
    demand(section.querySelector(".verdict").textContent === entry.verdict, "its verdict was changed");
    demand(same(texts(section.querySelector(".facts").children), facts), "its facts do not say what the lines say");
    for (const shown of [section.querySelector(".verdict"), row.querySelector(".verdict")]) {
      demand(shown.dataset.state === entry.state, "its verdict was changed");
    }
  }

  async function checkSession(section, row, entry) {
    demand(!section.querySelector("[hidden], [style]"), "something in it is hidden");
    const bodies = Array.from(section.querySelector("table.timeline").tBodies);
    const shown = bodies.map(shownRow);
    const events = shown.flatMap((one, place) => one.raw.map(([, line]) => parse(line, bodies[place])));
    events.sort((one, other) => one.sequence - other.sequence);
    await checkChain(events, entry);
    checkMarks(section);
    checkRows(rows(events), bodies, shown);
    demand(verdict(events) === entry.verdict, "its verdict is not what the lines give");
    demand((entry.state === "sealed") === (events.at(-1).kind === "session.ended"), "its verdict is not what the lines give");
    const { payload, timestamp } = events[0];
    const facts = RULES.facts.flatMap(([name, template]) => filled([template], payload).flatMap((text) => [name, text]));
    const agent = filled(["{agent_id}"], payload)[0];
    facts.push("Events", String(entry.events), "Last hash", entry.head, "Profile", "cra");
    checkWords(section, row, entry, facts, agent, moment(timestamp).join(" "));
  }

  function checkSummary(manifest, sections, summaryRows) {
    const ids = manifest.sessions.map((entry) => entry.id);
    const shown = sections.map((section) => section.querySelector("h2 .id")?.textContent);
    demand(same(shown, ids), "the sessions in the page are not those that it was made with");
    demand(same(summaryRows.map((row) => row.cells[0].textContent), ids), "the table of sessions was changed");
    const count = (state) => manifest.sessions.filter((entry) => entry.state === state).length;
    const tally = [ids.length, count("sealed"), count("open"), count("broken")].map(String);
    demand(same(texts(document.querySelectorAll("#tally dd")), tally), "the counts at the top were changed");
    demand(document.querySelectorAll("#unreadable li").length === manifest.unreadable, "the list of files that could not be read was changed");
    const bad = count("broken") > 0 || manifest.unreadable > 0 || ids.length === 0;
    const overall = bad ? "broken" : count("open") > 0 ? "open" : "sealed";
    const headline = document.getElementById("headline");
    demand(headline.textContent === RULES.headlines[overall] && headline.dataset.state === overall, "the headline was changed");
  }

  function tell(element, state, text) {
    element.dataset.state = state;
    element.textContent = text;
  }

  async function judge(section, row, entry) {
    const note = section.querySelector(".check");
    const result = row.cells[row.cells.length - 1];
    if (!entry.checked) {
      const broken = entry.state === "broken" ? "its chain was broken when the page was made" : "the browser checks whole sessions of our own profile only";
      tell(note, "unchecked", `Not checked in your browser: ${broken}.`);
      tell(result, "unchecked", "not checked here");
      return "unchecked";
    }
    try {
      await checkSession(section, row, entry);
    } catch (error) {
      if (error instanceof Fault) error.body?.setAttribute("data-fault", "");
      tell(note, "fault", `Checked in your browser: this is not what was recorded: ${error.message}.`);
      tell(result, "fault", "not what was recorded");
      return "fault";
    }
    tell(note, "whole", `Checked in your browser: ${counted(entry.events, "event")}, chain whole.`);
    tell(result, "whole", `${counted(entry.events, "event")}, chain whole`);
    return "whole";
  }

  function counted(number, what) {
    return `${number} ${what}${number === 1 ? "" : "s"}`;
  }

  function conclude(overall, results, events) {
    const count = (state) => results.filter((result) => result === state).length;
    const faults = count("fault");
    if (faults > 0) {
      tell(overall, "fault", `Checked in your browser: not what was recorded: ${faults} of ${counted(results.length, "session")}; each says where.`);
    } else if (count("unchecked") > 0) {
      tell(overall, "unchecked", `Checked in your browser: ${count("whole")} of ${counted(results.length, "session")}, every chain among them whole; ${count("unchecked")} not checked here.`);
    } else {
      tell(overall, "whole", `Checked in your browser: ${counted(events, "event")} in ${counted(results.length, "session")}, every chain whole, every table made from it.`);
    }
  }

  async function checkPage() {
    const overall = document.getElementById("overall");
    if (!globalThis.crypto?.subtle) {
      const missing = "Not checked: this browser offers no WebCrypto for this page, so nothing here was computed again.";
      for (const note of document.querySelectorAll(".check")) tell(note, "unchecked", missing);
      for (const result of document.querySelectorAll(".result")) tell(result, "unchecked", "not checked");
      return;
    }
    try {
      const manifest = JSON.parse(document.getElementById("manifest").textContent);
      const sections = Array.from(document.querySelectorAll("section.session"));
      const summaryRows = Array.from(document.getElementById("sessions").tBodies[0].rows);
      checkSummary(manifest, sections, summaryRows);
      const results = [];
      for (const [place, entry] of manifest.sessions.entries()) {
        results.push(await judge(sections[place], summaryRows[place], entry));
      }
      conclude(overall, results, manifest.sessions.reduce((sum, entry) => sum + entry.events, 0));
    } catch (error) {
      tell(overall, "fault", `Checked in your browser: this page was changed: ${error.message}.`);
    }
  }

  addEventListener("beforeprint", () => {
    for (const details of document.querySelectorAll("details")) details.open = true;
  });
  checkPage();
})();
