"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const one = (selector) => document.querySelector(selector);
  document.documentElement.classList.add("js");

  // --- sorting: a button in every head cell -----------------------------------------------------------------------------
  const leading = /^[-+−]?\d+(\.\d+)?/;
  const numberOf = (cell, text) => {
    if (cell.dataset.sort !== undefined) return Number(cell.dataset.sort);
    const found = text.match(leading);
    return found === null ? NaN : Number(found[0].replace("−", "-"));
  };
  const sortBy = (table, column, descending) => {
    const body = table.tBodies[0];
    const rows = [...body.rows].map((row) => {
      const text = row.cells[column].textContent.trim();
      return { row, text, number: numberOf(row.cells[column], text) };
    });
    const filled = rows.filter(({ text }) => text !== "" && text !== "—");
    const numeric = filled.every(({ number }) => !Number.isNaN(number));
    const compare = (a, b) => (numeric ? a.number - b.number : a.text.localeCompare(b.text, "en", { numeric: true }));
    filled.sort((a, b) => (descending ? -1 : 1) * compare(a, b));
    // what has no value comes last in both directions
    body.append(...filled.concat(rows.filter((row) => !filled.includes(row))).map(({ row }) => row));
  };
  for (const table of all("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const descending = head.getAttribute("aria-sort") === "ascending";
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", descending ? "descending" : "ascending");
        sortBy(table, column, descending);
      });
    });
  }

  // --- filters: which tables, and which of their rows -------------------------------------------------------------------
  const filters = one("form.filters");
  if (filters) {
    const selects = all("select", filters);
    const apply = () => {
      const wanted = Object.fromEntries(selects.map((select) => [select.name, select.value]));
      const fits = (element, name) => {
        const own = element.dataset[name];
        if (!wanted[name]) return true;
        if (name === "protocol" && own === "") return true; // a published number has none of ours
        return own === wanted[name];
      };
      for (const section of all("#board, #published")) {
        const blocks = all(".block", section);
        let tables = 0;
        let count = 0;
        for (const block of blocks) {
          let left = 0;
          const fit = ["dataset", "metric", "protocol"].every((name) => fits(block, name));
          for (const row of all("tbody tr", block)) {
            row.hidden = !(fit && fits(row, "method") && fits(row, "backbone"));
            left += row.hidden ? 0 : 1;
          }
          block.hidden = left === 0;
          tables += left ? 1 : 0;
          count += left;
        }
        const said = tables ? `${tables} of ${blocks.length} tables, ${count} ${count === 1 ? "row" : "rows"}` : "No table matches these filters.";
        one(`#${section.id} .count`).textContent = said;
      }
    };
    const prefer = (name, value) => {
      const select = filters.elements[name];
      if ([...select.options].some((option) => option.value === value)) select.value = value;
    };
    filters.addEventListener("change", apply);
    filters.addEventListener("submit", (event) => event.preventDefault());
    filters.addEventListener("reset", () => setTimeout(apply));
    for (const link of all("[data-filter]")) { // from a data set of the first section to all of its runs
      link.addEventListener("click", () => {
        selects.forEach((select) => { select.value = ""; });
        prefer("dataset", link.dataset.filter);
        apply();
      });
    }
    for (const name of ["dataset", "metric"]) prefer(name, filters.getAttribute(`data-${name}`)); // .dataset is the select of that name
    apply();
  }

  // --- charts of chosen runs --------------------------------------------------------------------------------------------
  const MOST = 6;
  const make = (name, attributes = {}, text = "") => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    if (text) element.textContent = text;
    return element;
  };
  const element = (name, text = "", ...children) => {
    const made = document.createElement(name);
    if (text) made.textContent = text;
    made.append(...children);
    return made;
  };
  const percent = (value) => { // halves go to the even digit, as in the tables: 6.25 -> 6.2, 6.75 -> 6.8
    const exact = 100 * value;
    return ((4 * exact) % 4 === 1 ? exact - 0.05 : exact).toFixed(1);
  };
  const LEFT = 40, TOP = 12, HEIGHT = 300, BOTTOM = 40;

  const frame = (width, label, top) => {
    const svg = make("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, height: HEIGHT, preserveAspectRatio: "xMinYMid", role: "img", "aria-label": label });
    const y = (value) => HEIGHT - BOTTOM - ((HEIGHT - BOTTOM - TOP) * value) / top;
    for (let step = 0; step <= 5; step += 1) {
      const value = (top * step) / 5;
      svg.append(make("line", { class: "grid", x1: LEFT, x2: width - 8, y1: y(value), y2: y(value) }));
      svg.append(make("text", { x: LEFT - 6, y: y(value) + 4, "text-anchor": "end" }, String(Math.round(100 * value))));
    }
    return { svg, y };
  };
  const numbers = (caption, head, rows) => {
    const table = element("table");
    table.createCaption().textContent = caption;
    const top = table.createTHead().insertRow();
    for (const text of head) {
      const cell = element("th", text);
      cell.scope = "col";
      top.append(cell);
    }
    const body = table.createTBody();
    for (const [first, ...rest] of rows) {
      const cell = element("th", first);
      cell.scope = "row";
      body.insertRow().append(cell, ...rest.map((text) => element("td", text)));
    }
    const scroll = element("div", "", table);
    scroll.className = "scroll";
    scroll.tabIndex = 0;
    scroll.setAttribute("role", "region");
    scroll.setAttribute("aria-label", caption);
    const details = element("details", "", element("summary", "Numbers"), scroll);
    details.title = caption;
    return details;
  };
  const between = ([xs, ys], x) => { // on the line between two points; null beyond its ends
    const after = xs.findIndex((value) => value >= x);
    if (after < 0 || (after === 0 && xs[0] > x)) return null;
    if (xs[after] === x) return ys[after];
    return ys[after - 1] + ((ys[after] - ys[after - 1]) * (x - xs[after - 1])) / (xs[after] - xs[after - 1]);
  };
  const reached = ([xs, ys], x) => ys[xs.findIndex((value) => value >= x)] ?? null; // at the next recall that a threshold reaches
  const steps = ([xs, ys]) => xs.flatMap((x, at) => [[at ? xs[at - 1] : 0, ys[at]], [x, ys[at]]]);

  const named = ({ run, style }) => `${style + 1}: ${run.label}`;

  const lines = (title, xTitle, key, runs, width) => {
    const drawn = runs.filter(({ run }) => run[key]);
    if (!drawn.length) return null;
    const said = (curve) => {
      if (key === "gt_known") return `highest ${percent(Math.max(...curve[1]))} at ${curve[0][curve[1].indexOf(Math.max(...curve[1]))]}`;
      return `${percent(reached(curve, 0.5))} at recall 0.5`;
    };
    const { svg, y } = frame(width, `${title}. ${drawn.map(({ run }) => `${run.label}: ${said(run[key])}`).join("; ")}`, 1);
    const x = (value) => LEFT + (width - LEFT - 8) * value;
    for (let step = 0; step <= 5; step += 1) {
      svg.append(make("text", { x: x(step / 5), y: HEIGHT - BOTTOM + 16, "text-anchor": "middle" }, String(step / 5)));
    }
    svg.append(make("text", { x: x(0.5), y: HEIGHT - 6, "text-anchor": "middle" }, xTitle));
    for (const { run, style } of drawn) {
      const [xs, ys] = run[key];
      const points = key === "pr" ? steps(run[key]) : xs.map((value, at) => [value, ys[at]]);
      svg.append(make("polyline", { class: `line s${style}`, points: points.map((point) => `${x(point[0]).toFixed(1)},${y(point[1]).toFixed(1)}`).join(" ") }));
      if (key === "gt_known") {
        const at = ys.indexOf(Math.max(...ys));
        svg.append(make("circle", { class: `dot s${style}`, cx: x(xs[at]), cy: y(ys[at]), r: 5 }));
      }
    }
    const places = Array.from({ length: 11 }, (_, step) => step / 10);
    const rows = places.map((place) => [
      String(place),
      ...drawn.map(({ run }) => (key === "pr" ? reached : between)(run[key], place)).map((value) => (value === null ? "" : percent(value))),
    ]);
    return element("figure", "", element("figcaption", title), svg, numbers(title, [xTitle, ...drawn.map(named)], rows));
  };

  const bars = (runs, width) => {
    const drawn = runs.filter(({ run }) => run.errors);
    if (!drawn.length) return null;
    const title = "Error breakdown (% of images, 95 % intervals)";
    const most = Math.max(...drawn.flatMap(({ run }) => run.errors.map(([value, , high]) => high ?? value)));
    const { svg, y } = frame(width, `${title}. The table below has the numbers.`, [0.1, 0.25, 0.5, 0.75, 1].find((top) => top >= most));
    const slot = (width - LEFT - 8) / data.errors.length;
    const thick = (0.84 * slot) / drawn.length;
    data.errors.forEach((name, place) => {
      const start = LEFT + slot * place + 0.08 * slot;
      svg.append(make("text", { x: start + 0.42 * slot, y: HEIGHT - 6, "text-anchor": "middle" }, name));
      drawn.forEach(({ run, style }, at) => {
        const [value, low, high] = run.errors[place];
        const middle = start + thick * (at + 0.5);
        svg.append(make("text", { class: "number", x: middle, y: HEIGHT - BOTTOM + 13, "text-anchor": "middle" }, String(style + 1)));
        svg.append(make("rect", { class: `bar s${style}`, x: start + thick * at, y: y(value), width: thick, height: Math.max(0, y(0) - y(value)) }));
        if (low != null && high != null) {
          svg.append(make("path", { class: "whisker", d: `M${middle} ${y(low)}V${y(high)}M${middle - 3} ${y(low)}h6M${middle - 3} ${y(high)}h6` }));
        }
      });
    });
    const text = ([value, low, high]) => (low == null ? percent(value) : `${percent(value)} [${percent(low)}, ${percent(high)}]`);
    const rows = data.errors.map((name, place) => [name, ...drawn.map(({ run }) => text(run.errors[place]))]);
    return element("figure", "", element("figcaption", title), svg, numbers(title, ["", ...drawn.map(named)], rows));
  };

  const charts = one(".charts");
  if (charts) {
    const select = one("#runs select[name=group]");
    const method = one("#runs select[name=method]");
    const blocks = all("#runs [data-group]");
    const status = one("#runs .count");
    const boxesShown = () => all("input", blocks[select.value]).sort((a, b) => a.value - b.value); // best first, however it is sorted
    const styles = new Map(); // of a chosen box; it keeps its colour while others come and go
    const chosen = (boxes) => {
      for (const box of [...styles.keys()]) if (!box.checked || !boxes.includes(box)) styles.delete(box);
      const used = new Set(styles.values());
      const free = Array.from({ length: MOST }, (_, style) => style).filter((style) => !used.has(style));
      for (const box of boxes) if (box.checked && !styles.has(box)) styles.set(box, free.shift());
      boxes.forEach((box) => { box.disabled = !box.checked && styles.size >= MOST; });
      const runs = [...styles].map(([box, style]) => ({ run: data.runs[select.value][Number(box.value)], style }));
      return runs.sort((a, b) => a.style - b.style);
    };
    const draw = () => {
      const runs = chosen(boxesShown());
      const room = charts.clientWidth || 320;
      const width = Math.max(280, Math.min(room, room > 700 ? (room - 48) / 3 : room, 576));
      const legend = element("ul");
      legend.className = "legend";
      for (const { run, style } of runs) {
        const sample = make("svg", { viewBox: "0 0 34 10", "aria-hidden": "true" });
        sample.append(make("line", { class: `line s${style}`, x1: 0, x2: 34, y1: 5, y2: 5 }));
        legend.append(element("li", "", sample, named({ run, style })));
      }
      const figures = [
        lines("GT-known by threshold (%)", "tau", "gt_known", runs, width),
        lines("Precision by recall (%)", "recall", "pr", runs, width),
        bars(runs, width),
      ].filter(Boolean);
      const before = all("details", charts);
      const open = new Set(before.filter((details) => details.open).map((details) => details.title));
      const held = before.find((details) => details.contains(document.activeElement));
      charts.replaceChildren(legend, ...figures);
      for (const details of all("details", charts)) {
        details.open = open.has(details.title);
        if (held && details.title === held.title) details.querySelector("summary").focus();
      }
      const none = runs.length ? "These runs have no curves." : "No run is selected.";
      const full = runs.length === MOST ? " To show another one, untick one first." : "";
      const said = figures.length ? `${runs.length} ${runs.length === 1 ? "run" : "runs"} plotted.${full}` : none;
      if (status.textContent !== said) status.textContent = said;
    };
    const filter = () => all("tbody tr", blocks[select.value]).forEach((row) => { row.hidden = !["", row.dataset.method].includes(method.value); });
    const show = () => {
      blocks.forEach((block, place) => { block.hidden = String(place) !== select.value; });
      const names = [...new Set(all("tbody tr", blocks[select.value]).map((row) => row.dataset.method))].sort();
      method.replaceChildren(new Option("all", ""), ...names.map((name) => new Option(name)));
      filter();
      const boxes = boxesShown();
      if (!boxes.some((box) => box.checked)) { // the best run with curves of each of the three best methods
        const of = (box) => box.closest("tr").dataset.method;
        const curved = boxes.filter((box) => ["gt_known", "pr"].some((key) => key in data.runs[select.value][Number(box.value)]));
        const best = curved.length ? curved : boxes;
        const first = best.filter((box, place) => best.findIndex((other) => of(other) === of(box)) === place);
        first.slice(0, 3).forEach((box) => { box.checked = true; });
      }
      draw();
    };
    select.addEventListener("change", show);
    method.addEventListener("change", filter);
    blocks.forEach((block) => block.addEventListener("change", draw));
    all("#runs form").forEach((form) => form.addEventListener("submit", (event) => event.preventDefault()));
    let seen = 0;
    new ResizeObserver(() => {
      if (charts.clientWidth !== seen) {
        seen = charts.clientWidth;
        draw();
      }
    }).observe(charts);
    show();
  }

  // --- comparisons ------------------------------------------------------------------------------------------------------
  const pair = one("#pairs select[name=pair]");
  if (pair) {
    const group = one("#pairs select[name=group]");
    const options = [...pair.options];
    const show = () => all("[data-pair]").forEach((block) => { block.hidden = block.dataset.pair !== pair.value; });
    const choose = () => {
      pair.replaceChildren(...options.filter((option) => option.dataset.of === group.value));
      pair.selectedIndex = 0; // the best two
      show();
    };
    group.addEventListener("change", choose);
    pair.addEventListener("change", show);
    choose();
  }
})();
