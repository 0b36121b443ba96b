"use strict";
(() => {
  const get = (id) => document.getElementById(id);
  // Text of corpora, labels and models is only ever text; control characters and marks that turn it around are removed.
  const UNSEEN = /[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff]/g;
  const clean = (value) => String(value).replace(UNSEEN, "");
  const make = (tag, attributes, ...children) => {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children.filter((child) => child !== null));
    return element;
  };
  const text = (value) => make("bdi", {}, clean(value));
  const number = (value, digits = 3) => value.toFixed(digits).replace("-", "−");

  let facts = { status: "loading", sites: [], notes: [] };
  let state = null, running = null;
  const initial = () => ({ features: [], strengths: {}, prompts: [""], tokens: 40, temperature: 0.5, seed: 0, chat: false });
  const labels = new Map();

  // Messages.
  let fault = "", progress = "";
  const showStatus = () => {
    const said = [facts.said, ...(facts.notes || []), progress, fault].filter(Boolean);
    get("status").replaceChildren(...said.map((one) => make("p", {}, text(one))));
  };
  const say = (sentence) => { fault = sentence; showStatus(); };

  const ask = async (path, body, signal) => {
    let answer;
    try {
      const post = { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
      answer = await fetch(path, body === undefined ? { signal } : { ...post, signal });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Error("the server does not answer; is atlas-jax serve still running?");
    }
    if (!answer.ok) throw new Error((await answer.json().catch(() => ({}))).error || `the server answered ${answer.status}`);
    return answer;
  };
  const json = async (...asked) => (await ask(...asked)).json();
  // The answer to the last of several questions counts.
  const latest = (question, show) => {
    let last = null;
    return async (...given) => {
      last?.abort();
      const own = last = new AbortController();
      try {
        const answer = await question(own.signal, ...given);
        if (own === last) show(answer, ...given);
      } catch (error) {
        if (error.name !== "AbortError" && own === last) say(error.message);
      }
    };
  };

  // The state, and its place in the address.
  const isNumber = (value) => typeof value === "number" && Number.isFinite(value);
  const read = () => {
    const found = initial();
    let given = null;
    try { given = JSON.parse(decodeURIComponent(location.hash.slice(1)) || "null"); } catch { say("the link is damaged, so the page begins anew"); }
    if (given === null || typeof given !== "object") return found;
    if (Array.isArray(given.features)) found.features = given.features.filter((f) => Array.isArray(f) && Number.isInteger(f[0]) && isNumber(f[1])).map((f) => [f[0], f[1]]);
    for (const [site, value] of Object.entries(given.strengths || {})) if (isNumber(value)) found.strengths[site] = value;
    if (Array.isArray(given.prompts) && given.prompts.length) found.prompts = given.prompts.slice(0, 8).map(String);
    for (const name of ["tokens", "temperature", "seed"]) if (isNumber(given[name])) found[name] = given[name];
    found.chat = given.chat === true;
    return found;
  };
  const keep = () => history.replaceState(null, "", "#" + encodeURIComponent(JSON.stringify(state)));
  const asked = () => ({ ...state, prompts: state.prompts.filter((prompt) => prompt.trim()) });

  // The concept.
  const search = latest((signal, query) => json(`/api/search?q=${encodeURIComponent(query)}`, undefined, signal), (hits, query) => {
    say("");
    const item = (hit) => {
      const button = make("button", { type: "button" }, text(hit.label || `feature ${hit.feature}`), make("small", {}, `${hit.feature}`));
      button.addEventListener("click", () => choose(hit));
      return make("li", {}, button);
    };
    get("results").replaceChildren(...hits.map(item));
    if (query.trim() && !hits.length) get("results").append(make("li", { class: "note" }, "Nothing matches; try other words, or the id of a feature."));
  });
  const choose = (hit) => {
    labels.set(hit.feature, hit.label);
    if (!state.features.some(([feature]) => feature === hit.feature)) state.features.push([hit.feature, 1]);
    changedConcept();
  };
  const showChosen = () => get("chosen").replaceChildren(...state.features.map((chosen) => {
    const [feature, weight] = chosen;
    const name = labels.get(feature) || `feature ${feature}`;
    const input = make("input", { type: "number", step: "0.1", value: weight, "aria-label": clean(`Weight of ${name}`) });
    input.addEventListener("change", () => {
      chosen[1] = isNumber(input.valueAsNumber) ? input.valueAsNumber : 1;
      changedConcept();
    });
    const remove = make("button", { type: "button", "aria-label": clean(`Remove ${name}`) }, "×");
    remove.addEventListener("click", () => {
      state.features = state.features.filter((other) => other !== chosen);
      changedConcept();
    });
    return make("div", { class: "row feature" }, make("span", {}, text(name), make("small", {}, ` ${feature}`)), input, remove);
  }));
  const changedConcept = () => {
    keep();
    showChosen();
    get("no-features").hidden = state.features.length > 0;
    if (!state.features.length) { get("features").replaceChildren(); return; }
    if (facts.sites.length) features();
  };

  // Subject features.
  const showFeatures = (answer) => {
    if (!state.features.length) return;
    say("");
    for (const [feature, label] of Object.entries(answer.labels)) labels.set(Number(feature), label);
    showChosen();
    get("features").replaceChildren(...answer.sites.map((site) => make("div", {},
      make("h3", {}, site.site, make("small", {}, ` by ${site.method}`)),
      ...site.features.map((one) => make("div", { class: "found" },
        make("div", {}, `${one.feature} `, make("small", {}, `similarity ${number(one.similarity)} · named `), text(one.names.join("; ") || "nothing")),
        ...one.peaks.map((peak) => make("p", { class: "sentence" }, make("small", {}, `${number(peak.activation, 2)} `),
          make("bdi", {}, clean(peak.before.slice(-90)), make("mark", {}, clean(peak.token)), clean(peak.after.slice(0, 90))))))))));
  };
  const features = latest((signal) => json("/api/features", { features: state.features }, signal), showFeatures);

  // Strengths, prompts, options.
  const showStrengths = () => get("strengths").replaceChildren(...facts.sites.map((site) => {
    const value = state.strengths[site.site] || 0, most = Math.max(site.most, Math.abs(value));
    const list = `marks-${site.site}`, output = make("output", {}, number(value, 2));
    const slider = make("input", { type: "range", min: -most, max: most, step: most / 100, value, list, "aria-label": `Strength at ${site.site}` });
    slider.value = value;
    slider.addEventListener("input", () => {
      const moved = Math.abs(slider.valueAsNumber) < most / 200 ? 0 : Number(slider.valueAsNumber.toFixed(4));
      if (moved) state.strengths[site.site] = moved; else delete state.strengths[site.site];
      output.textContent = number(moved, 2);
      keep();
    });
    const marks = [0, ...(site.suggested ? [site.suggested] : [])].map((mark) => make("option", { value: mark }));
    return make("div", { class: "row strength", title: `${site.method}; suggested ${site.suggested ?? "unknown"}` }, make("span", {}, site.site), slider, output, make("datalist", { id: list }, ...marks));
  }));
  const showPrompts = () => {
    get("prompts").replaceChildren(...state.prompts.map((prompt, place) => {
      const area = make("textarea", { rows: 2, "aria-label": `Prompt ${place + 1}`, maxlength: 20000, placeholder: "A text to continue" });
      area.value = prompt;
      area.addEventListener("input", () => { state.prompts[place] = area.value; keep(); });
      const remove = make("button", { type: "button", "aria-label": `Remove prompt ${place + 1}` }, "×");
      remove.disabled = state.prompts.length === 1;
      remove.addEventListener("click", () => { state.prompts.splice(place, 1); keep(); showPrompts(); });
      return make("div", { class: "row prompt" }, area, remove);
    }));
    get("more").disabled = state.prompts.length >= 8;
  };
  get("more").addEventListener("click", () => { state.prompts.push(""); keep(); showPrompts(); });
  for (const name of ["tokens", "temperature", "seed"]) get(name).addEventListener("change", () => {
    const value = Number(get(name).value);
    if (get(name).checkValidity() && get(name).value !== "") state[name] = value; else get(name).value = state[name];
    keep();
  });
  get("chat").addEventListener("change", () => { state.chat = get("chat").checked; keep(); });

  // Texts.
  const pairs = [];
  const card = (title, before) => {
    const area = make("div", { class: "text" }, make("bdi", { class: "before" }, clean(before)));
    return { element: make("div", { class: "card" }, make("h3", {}, title), area), area, before, pieces: [], tokens: [] };
  };
  const addPair = (prompt, chat) => {
    const before = chat ? "" : prompt, pair = [card("Baseline", before), card("Steered", before)];
    pairs.push(pair);
    get("texts").append(...(chat ? [make("p", { class: "note" }, text(prompt))] : []), make("div", { class: "pair" }, pair[0].element, pair[1].element));
  };
  const addPieces = (own, pieces) => {
    for (const piece of pieces) {
      const token = make("span", { role: "button", tabindex: 0, "aria-pressed": "false" }, clean(piece));
      const place = { before: own.pieces.join("").length, piece };
      token.addEventListener("click", () => look(own, token, place));
      token.addEventListener("keydown", (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); look(own, token, place); } });
      own.pieces.push(piece);
      own.tokens.push(token);
      own.area.append(token);
    }
  };
  const addScores = (own, values, without) => values.forEach((value, place) => {
    const token = own.tokens[place];
    if (!token) return;
    token.title = `log-probability ${number(value)}${own.steered ? ` steered, ${number(without[place])} without steering` : ""}`;
    token.classList.add(`l${Math.max(0, Math.min(9, Math.round(-without[place])))}`);
  });

  // One generation.
  const events = async (answer, handle) => {
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const parts = (rest + value).split("\n\n");
      rest = parts.pop();
      for (const part of parts) {
        const [name, data] = part.split("\n");
        handle(name.slice("event: ".length), JSON.parse(data.slice("data: ".length)));
      }
    }
  };
  const finish = (sentence) => {
    clearTimeout(running?.timer);
    running = null;
    progress = sentence;
    get("go").disabled = false;
    get("cancel").disabled = true;
    showStatus();
  };
  const tell = (sentence) => { progress = sentence; showStatus(); };
  const handlers = {
    queued: ({ job, ahead }) => {
      running.job = job;
      tell(ahead ? `${ahead === 1 ? "Another generation is" : `${ahead} generations are`} ahead of this one.` : "");
      if (running.cancelled) ask(`/api/cancel/${job}`, {}).catch((error) => say(error.message));
    },
    started: () => {
      tell("");
      running.timer = setTimeout(() => tell("The model is being compiled for texts of this length; the next generation starts at once."), 1500);
    },
    tokens: ({ prompt, rows }) => {
      clearTimeout(running.timer);
      if (progress) tell("");
      rows.forEach((pieces, row) => addPieces(pairs[prompt][row], pieces));
    },
    scores: ({ prompt, own, unsteered }) => own.forEach((values, row) => addScores(pairs[prompt][row], values, unsteered[row])),
    done: () => finish(""),
    cancelled: () => finish("Cancelled."),
    error: ({ error }) => { say(error); finish(""); },
  };
  get("controls").addEventListener("submit", async (event) => {
    event.preventDefault();
    if (running) return;
    running = { job: null, cancelled: false };
    say("");
    const wanted = asked();
    get("go").disabled = true;
    get("cancel").disabled = false;
    try {
      const answer = await ask("/api/steer", wanted);
      pairs.length = 0;
      get("texts").replaceChildren();
      get("token").hidden = true;
      get("hint").textContent = "Coloured: less likely without steering. Hover over a token for its log-probability; click it for the concepts there.";
      wanted.prompts.forEach((prompt) => addPair(prompt, wanted.chat));
      for (const pair of pairs) pair[1].steered = true;
      get("h-texts").scrollIntoView({ block: "nearest" });
      await events(answer, (name, content) => handlers[name]?.(content));
      if (running) { say("the server ended the generation; is it still running?"); finish(""); }
    } catch (error) {
      say(error.message);
      finish("");
    }
  });
  get("cancel").addEventListener("click", () => {
    if (!running) return;
    running.cancelled = true;
    get("cancel").disabled = true;
    if (running.job !== null) ask(`/api/cancel/${running.job}`, {}).catch((error) => say(error.message));
  });

  // One token.
  const list = (concepts, digits) => make("ol", {}, ...(concepts.length ? concepts.map((one) => make("li", { title: `atlas feature ${one.feature}` }, text(one.label || `feature ${one.feature}`),
    make("small", {}, number(one.value, digits)))) : [make("li", { class: "note" }, "none is active")]));
  const showPlace = (answer) => {
    get("token").hidden = false;
    get("place").replaceChildren(
      make("p", {}, make("mark", {}, clean(answer.shown)), make("small", {}, ` ${answer.title}`)),
      make("div", { class: "columns" },
        make("div", {}, make("h3", {}, "The atlas"), make("small", {}, "its features, by activation"), list(answer.atlas, 2)),
        ...answer.sites.map((site) => make("div", {}, make("h3", {}, site.site),
          make("small", {}, `the subject, translated${site.along === null ? "" : ` · along the concept ${number(site.along)}`}`), list(site.concepts, 3)))));
  };
  const reading = latest((signal, body) => json("/api/token", body, signal), (answer, body, token) => {
    showPlace({ ...answer, shown: token.textContent, title: token.title });
  });
  // The server counts characters, not the halves of which JavaScript makes some of them.
  const characters = (value) => [...value].length;
  const look = (own, token, place) => {
    say("");
    for (const other of document.querySelectorAll(".text [aria-pressed=true]")) other.setAttribute("aria-pressed", "false");
    token.setAttribute("aria-pressed", "true");
    const before = own.before + own.pieces.join("").slice(0, place.before), blank = place.piece.length - place.piece.trimStart().length;
    const at = characters(before) + (place.piece.trim() ? blank : 0);
    reading({ features: state.features, text: own.before + own.pieces.join(""), at }, token);
  };

  // What is kept.
  const copy = async (value) => {
    try { await navigator.clipboard.writeText(value); } catch { throw new Error("the browser does not let the page copy"); }
  };
  const told = (sentence) => { get("kept").textContent = clean(sentence); };
  document.querySelectorAll("[data-copy]").forEach((button) => button.addEventListener("click", async () => {
    try {
      const what = button.dataset.copy;
      keep();
      await copy(what === "link" ? location.href : (await json("/api/code", asked()))[what]);
      told(`Copied: ${button.textContent.replace("Copy ", "")}.`);
    } catch (error) { told(error.message); }
  }));
  document.querySelectorAll("[data-save]").forEach((button) => button.addEventListener("click", async () => {
    try {
      const format = button.dataset.save;
      const answer = await ask("/api/save", { ...asked(), format, additive: get("additive").checked });
      const link = make("a", { href: URL.createObjectURL(await answer.blob()), download: `vector.${format}` });
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 10000);
      told(`Saved as vector.${format}.`);
    } catch (error) { told(error.message); }
  }));

  // The beginning.
  const showState = () => {
    state = read();
    for (const name of ["temperature", "seed"]) get(name).value = state[name];
    if (![...get("tokens").options].some((option) => option.value === String(state.tokens))) get("tokens").append(make("option", {}, state.tokens));
    get("tokens").value = state.tokens;
    get("chat").checked = state.chat;
    showStrengths();
    showPrompts();
    changedConcept();
  };
  const wait = async () => {
    try { facts = { ...facts, ...(await json("/api/state")) }; } catch (error) { facts = { ...facts, said: error.message }; }
    const named = facts.subject ? `${facts.subject} read through ${facts.atlas} (${facts.features} features)` : "";
    get("run").textContent = clean([facts.run, named].filter(Boolean).join(" · "));
    get("chat-label").hidden = !facts.chat;
    showStatus();
    if (facts.sites.length && !wait.shown) {
      wait.shown = true;
      showState();
      if (get("query").value) search(get("query").value);
    }
    document.body.dataset.status = facts.status;
    if (!["ready", "failed"].includes(facts.status)) setTimeout(wait, 700);
  };
  get("query").addEventListener("input", () => search(get("query").value));
  get("query").addEventListener("keydown", (event) => {
    if (event.key === "ArrowDown") { event.preventDefault(); get("results").querySelector("button")?.focus(); }
    if (event.key === "Enter") { event.preventDefault(); get("results").querySelector("button")?.click(); }
  });
  window.addEventListener("hashchange", showState);
  showState();
  wait();
})();
