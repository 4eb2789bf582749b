"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const one = (selector) => document.querySelector(selector);
  document.documentElement.classList.add("js");

  // --- sorting: a button in every head cell -----------------------------------------------------------------------------
  const numberOf = (text) => {
    const found = text.match(/[-+−]?\d+(\.\d+)?/);
    if (found === null || found.index > 4) return NaN;
    const value = Number(found[0].replace("−", "-"));
    return text.includes("% error") ? 100 - value : value; // some papers print what is wrong
  };
  const compareCells = (a, b, numeric) =>
    numeric ? numberOf(a) - numberOf(b) : a.localeCompare(b, "en", { numeric: true });
  const sortBy = (table, column, descending) => {
    const body = table.tBodies[0];
    const rows = [...body.rows].map((row) => ({ row, text: row.cells[column].textContent.trim() }));
    const filled = rows.filter(({ text }) => text !== "" && text !== "—");
    const numeric = filled.every(({ text }) => !Number.isNaN(numberOf(text)));
    filled.sort((a, b) => (descending ? -1 : 1) * compareCells(a.text, b.text, numeric));
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
        one(`#${section.id} .count`).textContent = `${tables} of ${blocks.length} tables, ${count} rows`;
      }
    };
    const prefer = (name, value) => {
      const select = filters.elements[name];
      if ([...select.options].some((option) => option.value === value)) select.value = value;
    };
    filters.addEventListener("change", apply);
    filters.addEventListener("submit", (event) => event.preventDefault());
    filters.addEventListener("reset", () => setTimeout(apply));
    prefer("dataset", filters.elements.dataset.options[1].value);
    prefer("metric", "GT-known");
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
  const percent = (value) => (100 * value).toFixed(1);
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
  const numbers = (head, rows) => {
    const table = element("table");
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
    return element("details", "", element("summary", "Numbers"), scroll);
  };
  const nearest = ([xs, ys], x) => ys[xs.reduce((best, value, at) => (Math.abs(value - x) < Math.abs(xs[best] - x) ? at : best), 0)];

  const lines = (title, xTitle, key, runs, width) => {
    const drawn = runs.filter(({ run }) => run[key]);
    if (!drawn.length) return null;
    const best = drawn.map(({ run }) => `${run.label}: highest ${percent(Math.max(...run[key][1]))}`);
    const { svg, y } = frame(width, `${title}. ${best.join("; ")}`, 1);
    const x = (value) => LEFT + (width - LEFT - 8) * value;
    for (let step = 0; step <= 5; step += 1) {
      svg.append(make("text", { x: x(step / 5), y: HEIGHT - BOTTOM + 16, "text-anchor": "middle" }, String(step / 5)));
    }
    svg.append(make("text", { x: x(0.5), y: HEIGHT - 6, "text-anchor": "middle" }, xTitle));
    for (const { run, style } of drawn) {
      const [xs, ys] = run[key];
      svg.append(make("polyline", { class: `line s${style}`, points: xs.map((value, at) => `${x(value).toFixed(1)},${y(ys[at]).toFixed(1)}`).join(" ") }));
      if (key === "gt_known") {
        const at = ys.indexOf(Math.max(...ys));
        svg.append(make("circle", { class: `dot s${style}`, cx: x(xs[at]), cy: y(ys[at]), r: 5 }));
      }
    }
    const places = Array.from({ length: 11 }, (_, step) => step / 10);
    const rows = places.map((place) => [String(place), ...drawn.map(({ run }) => percent(nearest(run[key], place)))]);
    return element("figure", "", element("figcaption", title), svg, numbers([xTitle, ...drawn.map(({ run }) => run.label)], rows));
  };

  const NAMES = ["Right", "Cls", "M-Ins", "Part", "More", "Other"];
  const bars = (runs, width) => {
    const drawn = runs.filter(({ run }) => run.errors);
    if (!drawn.length) return null;
    const title = "Error breakdown (% of images, 95 % intervals)";
    const most = Math.max(...drawn.flatMap(({ run }) => run.errors.map(([value, , high]) => high ?? value)));
    const { svg, y } = frame(width, `${title}. The numbers are in the table below.`, Math.max(0.1, Math.ceil(most * 10) / 10));
    const slot = (width - LEFT - 8) / NAMES.length;
    const thick = (0.84 * slot) / drawn.length;
    NAMES.forEach((name, place) => {
      const start = LEFT + slot * place + 0.08 * slot;
      svg.append(make("text", { x: start + 0.42 * slot, y: HEIGHT - BOTTOM + 16, "text-anchor": "middle" }, name));
      drawn.forEach(({ run, style }, at) => {
        const [value, low, high] = run.errors[place];
        svg.append(make("rect", { class: `bar s${style}`, x: start + thick * at, y: y(value), width: thick, height: Math.max(0, y(0) - y(value)) }));
        if (low != null && high != null) {
          const middle = start + thick * (at + 0.5);
          svg.append(make("path", { class: "whisker", d: `M${middle} ${y(low)}V${y(high)}M${middle - 3} ${y(low)}h6M${middle - 3} ${y(high)}h6` }));
        }
      });
    });
    const text = ([value, low, high]) => (low == null ? percent(value) : `${percent(value)} [${percent(low)}, ${percent(high)}]`);
    const rows = NAMES.map((name, place) => [name, ...drawn.map(({ run }) => text(run.errors[place]))]);
    return element("figure", "", element("figcaption", title), svg, numbers(["", ...drawn.map(({ run }) => run.label)], rows));
  };

  const charts = one(".charts");
  if (charts) {
    const select = one("#runs select");
    const blocks = all("#runs [data-group]");
    const draw = () => {
      const block = blocks[select.value];
      const boxes = all("input", block);
      const chosen = boxes.filter((box) => box.checked);
      boxes.forEach((box) => { box.disabled = !box.checked && chosen.length >= MOST; });
      const runs = chosen.map((box, style) => ({ run: data.runs[select.value][Number(box.value)], style }));
      const room = charts.clientWidth || 320;
      const width = Math.max(280, Math.min(room, room > 700 ? (room - 48) / 3 : room, 576));
      const legend = element("ul");
      legend.className = "legend";
      for (const { run, style } of runs) {
        const sample = make("svg", { viewBox: "0 0 34 10", "aria-hidden": "true" });
        sample.append(make("line", { class: `line s${style}`, x1: 0, x2: 34, y1: 5, y2: 5 }));
        legend.append(element("li", "", sample, run.label));
      }
      const figures = [
        lines("GT-known over tau (%)", "tau", "gt_known", runs, width),
        lines("Precision over recall (%)", "recall", "pr", runs, width),
        bars(runs, width),
      ].filter(Boolean);
      charts.replaceChildren(legend, ...figures);
      if (!figures.length) charts.append(element("p", runs.length ? "These runs have no curves." : "No run is chosen."));
    };
    const show = () => {
      blocks.forEach((block, place) => { block.hidden = String(place) !== select.value; });
      const boxes = all("input", blocks[select.value]);
      if (!boxes.some((box) => box.checked)) boxes.slice(0, 3).forEach((box) => { box.checked = true; });
      draw();
    };
    select.addEventListener("change", show);
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
  const pair = one("#pairs select");
  if (pair) {
    const show = () => all("[data-pair]").forEach((block) => { block.hidden = block.dataset.pair !== pair.value; });
    pair.addEventListener("change", show);
    show();
  }
})();
