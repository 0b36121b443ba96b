"use strict";
(() => {
  const get = (id) => document.getElementById(id);
  const parse = (id) => (get(id) ? JSON.parse(get(id).textContent) : null);
  const make = (tag, attributes, ...children) => {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children.filter((child) => child !== null));
    return element;
  };
  const text = (value) => make("bdi", {}, value);

  // Copies of tables.
  const tables = parse("tables");
  const copy = async (value) => {
    try {
      await navigator.clipboard.writeText(value);
    } catch { // pages from files have no clipboard in some browsers
      const area = make("textarea", { "aria-hidden": "true" });
      area.value = value;
      document.body.append(area);
      area.select();
      document.execCommand("copy");
      area.remove();
    }
  };
  for (const tools of document.querySelectorAll(".tools")) {
    tools.hidden = false;
    tools.addEventListener("click", async (event) => {
      const button = event.target.closest("button");
      if (!button) return;
      const label = button.textContent;
      await copy(tables[tools.closest(".table").dataset.table][button.dataset.copy]);
      button.textContent = "Copied";
      setTimeout(() => { button.textContent = label; }, 1200);
    });
  }

  // The search.
  const data = parse("data");
  if (!data) return;
  const query = get("query"), results = get("results"), status = get("status"), found = get("found");
  const MOST = 50;
  const label = new Map(data.atlas.map((row, place) => [row[0], { text: row[1], place }]));
  const name = (feature) => label.get(feature)?.text || data.others[feature] || "";
  const words = (value) => value.toLowerCase().match(/[\p{L}\p{N}_]+/gu) || [];
  const stem = (word) => (word.length > 3 ? word.replace(/(es|s)$/, "") : word);
  const bags = data.atlas.map((row) => words(row[1]));
  const frequency = new Map();
  for (const bag of bags) for (const word of new Set(bag)) frequency.set(word, (frequency.get(word) || 0) + 1);
  const rarity = (word) => Math.log(1 + data.atlas.length / frequency.get(word));

  const match = (term, word) => {
    if (word === term) return 3;
    if (stem(word) === stem(term)) return 2.5;
    if (term.length > 1 && word.startsWith(term)) return 1.5;
    return term.length > 2 && word.includes(term) ? 0.5 : 0;
  };
  const score = (terms, bag) => {
    let sum = 0;
    for (const term of terms) {
      let best = 0;
      for (const word of bag) best = Math.max(best, match(term, word) * (frequency.has(word) ? rarity(word) : 1));
      sum += best;
    }
    return sum / Math.sqrt(1 + bag.length / 20);
  };

  const search = (asked) => {
    const terms = words(asked), hits = [];
    const number = /^#?\d+$/.test(asked.trim()) ? Number(asked.trim().replace("#", "")) : null;
    const subject = asked.trim().match(/^(\w+\.\d+)[\s:]+(\d+)$/);
    if (subject && data.subject[subject[1]]?.[subject[2]]) hits.push({ score: 1e4, kind: "subject", site: subject[1], feature: subject[2] });
    if (number !== null) for (const site of data.sites) {
      if (data.subject[site][number]) hits.push({ score: 900, kind: "subject", site, feature: number });
    }
    data.steered.forEach((set, place) => {
      const value = terms.length ? score(terms, words(set.name)) : 1;
      if (value > 0) hits.push({ score: value + 100, kind: "steered", place });
    });
    data.atlas.forEach((row, place) => {
      const value = row[0] === number ? 1000 : terms.length ? score(terms, bags[place]) : row[2];
      if (value > 0) hits.push({ score: value * (row[2] > 0 ? 1 : 0.5), kind: "atlas", place });
    });
    return hits.sort((a, b) => b.score - a.score);
  };
  const share = (rate) => (rate > 0 ? `${(100 * rate).toPrecision(2)}%` : "never");
  const address = (hit) => hit.kind === "subject" ? `#subject-${hit.site}:${hit.feature}`
    : hit.kind === "steered" ? `#steered-${hit.place}` : `#atlas-${data.atlas[hit.place][0]}`;
  const entry = (hit) => {
    if (hit.kind === "subject") return [`${hit.site}:${hit.feature}`, "subject"];
    if (hit.kind === "steered") return [data.steered[hit.place].name, `steered, ${data.steered[hit.place].where.split(" at ")[0]}`];
    const row = data.atlas[hit.place];
    return [row[1] || "without a label", `${row[0]}`];
  };
  const list = () => {
    const hits = search(query.value), shown = hits.slice(0, MOST);
    results.replaceChildren(...shown.map((hit) => {
      const [title, detail] = entry(hit);
      return make("li", {}, make("a", { href: address(hit) }, text(title), make("small", {}, detail)));
    }));
    const many = `${hits.length} ${hits.length === 1 ? "entry" : "entries"}${query.value.trim() ? "" : ", the most frequent first"}`;
    status.textContent = hits.length ? `${many}${hits.length > MOST ? `, ${MOST} shown` : ""}`
      : "Nothing matches; try other words, or the id of a feature.";
    current();
  };

  // What was found.
  const colour = (pieces, levels, peak) => {
    const line = make("bdi", {});
    pieces.forEach((piece, i) => {
      const level = levels[i] || "0";
      const element = i === peak ? "mark" : level === "0" ? null : "span";
      if (!element) return line.append(piece);
      const [, before, rest] = piece.match(/^(\s*)([^]*)$/);
      line.append(before, make(element, { class: `l${level}` }, rest));
    });
    return line;
  };
  const sentences = (peaks) => peaks.map(([sentence, activation, levels, peak]) => make(
    "p", { class: "sentence" }, make("small", {}, activation.toFixed(2)), colour(data.sentences[sentence], levels, peak),
  ));
  const named = (pairs) => {
    const line = make("p", { class: "names" }, pairs.length ? "named " : "without a name: nothing in its row of T");
    pairs.forEach(([feature, weight], i) => {
      line.append(i ? ", " : "", make("a", { href: `#atlas-${feature}` }, text(name(feature) || `${feature}`)), ` ${weight.toFixed(2)}`);
    });
    return line;
  };
  const subjectCard = (site, feature, similarity) => {
    const own = data.subject[site][feature];
    const head = make("p", {}, make("a", { href: `#subject-${site}:${feature}` }, `feature ${feature}`));
    if (similarity !== null) head.append(`, similarity ${similarity.toFixed(3)}`);
    return make("div", { class: "feature" }, head, ...(own ? [named(own.names), ...sentences(own.peaks)] : []));
  };
  const title = (value) => make("h3", { tabindex: "-1" }, value);
  const steeredWith = (feature) => data.steered.map((set, place) => [set, place])
    .filter(([set]) => set.features.some(([f]) => f === feature))
    .map(([set, place]) => make("li", {}, make("a", { href: `#steered-${place}` }, text(`${set.name}, by ${set.where}`))));

  const views = {
    atlas: (id) => {
      const row = data.atlas[label.get(Number(id))?.place];
      if (!row) return [title(`Atlas feature ${id}`), make("p", {}, text(name(Number(id)))), make("p", { class: "note" }, "It fires too rarely to be on this page.")];
      const sets = steeredWith(row[0]);
      const parts = [title(make("span", {}, `Atlas feature ${row[0]}: `, text(row[1] || "without a label")))];
      parts.push(make("p", { class: "note" }, `Fires in ${share(row[2])} of the sentences aligned on. Subject features by ${data.method}, with the held-out sentences that activate them most.`));
      if (sets.length) parts.push(make("p", {}, "Steered texts with it:"), make("ul", {}, ...sets));
      data.sites.forEach((site, i) => {
        parts.push(make("h4", {}, site));
        const features = row[3][i];
        parts.push(...(features.length ? features.map(([f, s]) => subjectCard(site, f, s)) : [make("p", { class: "note" }, "no subject feature is similar to it here")]));
      });
      return parts;
    },
    subject: (place) => {
      const [site, feature] = place.split(":");
      const own = data.subject[site]?.[feature];
      if (!own) return [title(`Subject feature ${place}`), make("p", { class: "note" }, "It is not on this page; atlas-jax name RUN names any.")];
      const near = data.atlas.filter((row) => row[3][data.sites.indexOf(site)].some(([f]) => f === Number(feature)));
      return [
        title(`Subject feature ${feature} at ${site}`),
        make("p", { class: "note" }, `Named by the atlas features that weigh most in its row of T by ${data.method}.`),
        make("ul", {}, ...own.names.map(([f, w]) => make("li", {}, make("a", { href: `#atlas-${f}` }, text(`${f} ${name(f)}`)), ` ${w.toFixed(3)}`))),
        make("h4", {}, "Held-out sentences that activate it most"), ...sentences(own.peaks),
        ...(near.length ? [make("h4", {}, "Found for the atlas features"), make("ul", {}, ...near.slice(0, 12).map((row) => make("li", {}, make("a", { href: `#atlas-${row[0]}` }, text(`${row[0]} ${row[1]}`)))))] : []),
      ];
    },
    steered: (place) => {
      const set = data.steered[place];
      if (!set) return [title("No such steered concept")];
      const unit = { norm: "mean token norms of the site", raw: "λ of Eq. 4", length: "units of the activation" }[set.unit];
      const parts = [title(make("span", {}, "Steered along ", text(set.name)))];
      const features = make("p", { class: "names" }, "atlas features ");
      set.features.forEach(([f, w], i) => features.append(i ? ", " : "", make("a", { href: `#atlas-${f}` }, text(`${f} ${name(f)}`)), ` ${w.toFixed(2)}`));
      parts.push(features, make("p", { class: "note" }, `By ${set.where}; strengths in ${unit}, 0 is the baseline. Tokens are coloured by how active the concept's atlas features are there.`));
      for (const prompt of new Set(set.rows.map((row) => row[0]))) {
        const rows = set.rows.filter((row) => row[0] === prompt).sort((a, b) => (a[6] < b[6] ? -1 : a[6] > b[6] ? 1 : a[1] - b[1]));
        parts.push(make("h4", {}, "“", text(prompt), "…”"), make("div", { class: "doses" }, ...rows.map(([, strength, pieces, levels, active, perplexity, along]) => make(
          "div", { class: "dose" }, make("p", {}, make("strong", {}, strength === 0 ? "baseline" : `strength ${strength}`), along === "concept" ? "" : `, ${along} direction`),
          make("p", {}, colour(pieces, levels, -1)),
          make("p", { class: "note" }, `concept ${active.toFixed(2)}${perplexity === null ? "" : `, perplexity ${perplexity.toFixed(1)}`}`),
        ))));
      }
      return parts;
    },
  };

  const decode = (address) => {
    try {
      return decodeURIComponent(address);
    } catch {
      return "";
    }
  };
  const current = () => {
    for (const link of results.querySelectorAll("a")) {
      if (link.getAttribute("href") === decode(location.hash)) link.setAttribute("aria-current", "true");
      else link.removeAttribute("aria-current");
    }
  };
  const display = (address) => {
    const [, kind, place] = decode(address).match(/^#(atlas|subject|steered)-(.+)$/) || [];
    if (kind) found.replaceChildren(...views[kind](place));
    return Boolean(kind);
  };
  const show = (focus) => {
    if (!display(location.hash)) return false;
    current();
    if (focus) {
      found.querySelector("h3").focus({ preventScroll: true });
      if (found.getBoundingClientRect().top < 0 || found.getBoundingClientRect().top > innerHeight - 120) found.scrollIntoView();
    }
    return true;
  };
  query.addEventListener("input", list);
  query.addEventListener("keydown", (event) => {
    if (event.key === "Enter") results.querySelector("a")?.click();
    if (event.key === "ArrowDown") { event.preventDefault(); results.querySelector("a")?.focus(); }
  });
  results.addEventListener("keydown", (event) => {
    const step = { ArrowDown: "nextElementSibling", ArrowUp: "previousElementSibling" }[event.key];
    if (!step) return;
    event.preventDefault();
    (document.activeElement.parentElement[step]?.querySelector("a") || query).focus();
  });
  addEventListener("hashchange", () => show(true));
  document.querySelector(".search").hidden = false;
  list();
  const first = results.querySelector("a");
  if (!show(false) && first) display(first.getAttribute("href"));
})();
