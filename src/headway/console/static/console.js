// The console's own script: keeps an open page up to date while somebody looks at it, and draws the charts.
"use strict";

(() => {
  // --- a search that does not come back says so in its own place ---

  const found = document.getElementById("found");
  const isSearch = (event) => event.target instanceof Element && event.target.matches("form.search");
  const apologise = (event) => {
    if (!found || !isSearch(event)) return;
    const said = document.createElement("p");
    said.className = "refused";
    said.setAttribute("role", "alert");
    said.textContent = "Headway did not answer this search. Try it again.";
    found.replaceChildren(said);
  };
  document.addEventListener("htmx:error", apologise);
  document.addEventListener("htmx:response:error", apologise);

  const live = document.getElementById("live");
  if (!live) return;

  // --- keeping up to date: htmx asks, unless nobody looks or nothing happens any more ---

  const isOver = () => live.querySelector("[data-over]") !== null;
  const offline = document.getElementById("offline");

  document.addEventListener("htmx:before:request", (event) => {
    if ((document.hidden || isOver()) && !isSearch(event)) event.preventDefault();
  });
  document.addEventListener("visibilitychange", () => {
    if (!document.hidden) live.dispatchEvent(new CustomEvent("every"));
  });
  const tell = (isAway) => {
    if (offline) offline.hidden = !isAway;
  };
  document.addEventListener("htmx:error", (event) => isSearch(event) || tell(true));
  document.addEventListener("htmx:response:error", (event) => isSearch(event) || tell(true));
  document.addEventListener("htmx:after:swap", () => {
    tell(false);
    refresh();
  });

  // --- charts ---

  const rollout = live.dataset.rollout;
  if (!rollout) return;

  const charts = new Map(); // by name of the metric: {plot, curve}
  let figures = null; // as /figures gives them
  let tick = null; // of the figures
  let asking = false;

  const currentTick = () => live.querySelector("[data-tick]")?.dataset.tick ?? null;

  async function ask(since) {
    const query = since === undefined ? "" : `?since=${since}`;
    const answer = await fetch(`/rollouts/${rollout}/figures${query}`, { headers: { accept: "application/json" } });
    const isJson = (answer.headers.get("content-type") ?? "").startsWith("application/json");
    return answer.ok && isJson ? answer.json() : null;
  }

  async function refresh() {
    if (!live.querySelector(".chart")) return;
    if (asking || (figures && tick === currentTick())) return draw();
    asking = true;
    const wanted = currentTick();
    try {
      const isLong = figures && figures.times.length > 1200; // the server thins out
      const last = figures && !isLong ? figures.times.at(-1) : undefined;
      const found = await ask(last);
      if (found) {
        figures = last === undefined ? found : append(figures, found);
        tick = wanted;
      }
    } catch {
      // The next time it is asked again.
    } finally {
      asking = false;
    }
    draw();
  }

  function append(known, found) {
    const more = new Map(found.metrics.map((curve) => [curve.name, curve]));
    const metrics = known.metrics.map((curve) => {
      const joined = { ...curve };
      for (const name of ["estimate", "lower", "upper"]) joined[name] = curve[name].concat(more.get(curve.name)[name]);
      return joined;
    });
    return { times: known.times.concat(found.times), stages: found.stages, metrics };
  }

  function draw() {
    if (!figures) return;
    for (const element of live.querySelectorAll(".chart")) {
      const curve = figures.metrics.find((each) => each.name === element.dataset.metric);
      if (!curve || figures.times.length < 2) continue;
      const chart = charts.get(curve.name);
      if (chart && chart.element === element) {
        chart.curve = curve;
        chart.plot.setData(columns(curve));
      } else {
        chart?.plot.destroy();
        charts.set(curve.name, make(element, curve));
      }
    }
  }

  const neutral = (curve) => (curve.form === "ratio" ? 1 : 0);
  const span = (curve) => Math.abs(curve.margin - neutral(curve));

  // An interval that is open to one side goes far beyond what is shown.
  function columns(curve) {
    const far = 1000 * span(curve);
    const open = (values, other, end) =>
      values.map((value, i) => value ?? (other[i] === null || curve.estimate[i] === null ? null : end));
    const lower = open(curve.lower, curve.upper, neutral(curve) - far);
    const upper = open(curve.upper, curve.lower, neutral(curve) + far);
    // An estimate without an interval is told apart: it may be anything.
    const isBare = (i) => lower[i] === null && upper[i] === null;
    const sure = curve.estimate.map((value, i) => (isBare(i) ? null : value));
    const bare = curve.estimate.map((value, i) => (isBare(i) ? value : null));
    return [figures.times, lower, upper, sure, bare];
  }

  // What is shown: both lines, no change, the estimates and the newest interval; not how wide intervals once were.
  function range(curve) {
    const middle = neutral(curve);
    const widest = 2.5 * span(curve);
    const clamp = (value) => Math.min(Math.max(value, middle - widest), middle + widest);
    const known = (values) => values.filter((value) => value !== null);
    const newest = [curve.lower, curve.upper].map((values) => known(values).at(-1)).filter((value) => value !== undefined);
    const last = known(curve.estimate).at(-1);
    const recent = known(curve.estimate.slice(-Math.ceil(curve.estimate.length * 0.6)));
    const shown = [middle, curve.margin, curve.harm, ...newest.map(clamp), ...recent.map(clamp)];
    if (last !== undefined) shown.push(Math.min(Math.max(last, middle - 3 * widest), middle + 3 * widest));
    const low = Math.min(...shown);
    const high = Math.max(...shown);
    const room = 0.08 * (high - low);
    return [curve.form === "ratio" ? Math.max(0, low - room) : low - room, high + room];
  }

  function write(curve, value, places) {
    if (value === null || value === undefined) return "–";
    if (curve.form === "ratio") return `×${value.toFixed(places ?? (value < 10 ? 2 : value < 100 ? 1 : 0))}`;
    const text = (value * curve.factor).toFixed(places ?? (curve.factor === 100 ? 1 : 2));
    const sign = Number(text) > 0 ? "+" : "";
    return Number(text) === 0 ? "0" : `${sign}${text}`.replace("-", "−");
  }

  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const font = (pixel) => `${11 * pixel}px ${getComputedStyle(document.body).fontFamily}`;

  // Times as exact as the length of what is shown needs.
  const format = (options) => new Intl.DateTimeFormat("en-GB", { timeZone: "UTC", ...options });
  const CLOCKS = [
    [600, format({ hour: "2-digit", minute: "2-digit", second: "2-digit" })],
    [2 * 86_400, format({ hour: "2-digit", minute: "2-digit" })],
    [Infinity, format({ day: "numeric", month: "short", hour: "2-digit", minute: "2-digit" })],
  ];
  const clock = (seconds) => {
    const shown = figures.times.at(-1) - figures.times[0];
    return CLOCKS.find(([longest]) => shown <= longest)[1].format(seconds * 1000);
  };

  function make(element, curve) {
    const chart = { element, curve, plot: null };
    const [soft, line, paper, accent, wash, loss, lossWash] = [
      "--soft", "--line", "--paper", "--accent", "--accent-wash", "--loss", "--loss-wash",
    ].map(colour);

    // Beneath the curves: what lies beyond the margin, the stages; above them: the lines and their names.
    function paintBeneath(plot) {
      const { ctx, bbox } = plot;
      const { left, top, width, height } = bbox;
      const margin = plot.valToPos(chart.curve.margin, "y", true);
      const isUp = chart.curve.margin > neutral(chart.curve);
      ctx.save();
      ctx.beginPath();
      ctx.rect(left, top, width, height);
      ctx.clip();
      ctx.fillStyle = lossWash;
      ctx.fillRect(left, isUp ? top : margin, width, isUp ? margin - top : top + height - margin);
      ctx.restore();
    }

    function paintLines(plot) {
      const { ctx, bbox } = plot;
      const { left, top, width, height } = bbox;
      const pixel = uPlot.pxRatio;
      const across = (value, style, dash, weight) => {
        const y = Math.round(plot.valToPos(value, "y", true)) + 0.5;
        ctx.strokeStyle = style;
        ctx.lineWidth = weight * pixel;
        ctx.setLineDash(dash.map((each) => each * pixel));
        ctx.beginPath();
        ctx.moveTo(left, y);
        ctx.lineTo(left + width, y);
        ctx.stroke();
        return y;
      };
      ctx.save();
      ctx.beginPath();
      ctx.rect(left, top, width, height);
      ctx.clip();
      const same = across(neutral(chart.curve), soft, [], 0.75);
      const harm = across(chart.curve.harm, loss, [4, 4], 1);
      const margin = across(chart.curve.margin, loss, [], 1.25);
      ctx.setLineDash([]);
      ctx.font = font(pixel);
      ctx.strokeStyle = paper; // a halo, so that names can be read on top of curves
      ctx.lineJoin = "round";
      ctx.lineWidth = 3 * pixel;
      const say = (text, style, align, x, y) => {
        ctx.fillStyle = style;
        ctx.textAlign = align;
        ctx.strokeText(text, x, y);
        ctx.fillText(text, x, y);
      };
      const name = (text, y) => {
        const isUp = chart.curve.margin > neutral(chart.curve) || y + 15 * pixel > top + height;
        say(text, loss, "left", left + 4 * pixel, isUp && y - 14 * pixel > top ? y - 4 * pixel : y + 12 * pixel);
      };
      name("margin", margin);
      if (Math.abs(harm - margin) > 15 * pixel) name("harm line", harm);

      // What cannot be seen is told.
      const last = chart.curve.estimate.findLast((value) => value !== null);
      const edge = left + width - 6 * pixel;
      if (last === undefined) say("nothing to draw yet", soft, "center", left + width / 2, (same + harm) / 2 + 4 * pixel);
      else if (last > plot.scales.y.max) say(`▲ ${write(chart.curve, last)}`, accent, "right", edge, top + 14 * pixel);
      else if (last < plot.scales.y.min) say(`▼ ${write(chart.curve, last)}`, accent, "right", edge, top + height - 6 * pixel);
      ctx.restore();

      ctx.save();
      ctx.font = font(pixel);
      ctx.fillStyle = soft;
      ctx.strokeStyle = soft;
      ctx.lineWidth = 0.75 * pixel;
      ctx.setLineDash([1 * pixel, 3 * pixel]);
      let free = left + width;
      for (const stage of [...figures.stages].reverse()) {
        const x = Math.max(left, Math.round(plot.valToPos(stage.at, "x", true)) + 0.5);
        if (x > left + width) continue;
        ctx.beginPath();
        ctx.moveTo(x, top - 12 * pixel);
        ctx.lineTo(x, top + height);
        ctx.stroke();
        if (free - x > ctx.measureText(stage.label).width + 8 * pixel || free === left + width) {
          ctx.textAlign = free - x < 30 * pixel ? "right" : "left";
          ctx.fillText(stage.label, x + (ctx.textAlign === "left" ? 4 : -4) * pixel, top - 4 * pixel);
          free = x;
        }
      }
      ctx.restore();
    }

    const hover = document.createElement("div");
    hover.className = "hover";
    const showHover = (plot) => {
      const i = plot.cursor.idx;
      const { estimate, lower, upper, unit } = chart.curve;
      const known = i !== null && i !== undefined && estimate[i] !== null;
      hover.textContent = known
        ? `${clock(figures.times[i])}  ${write(chart.curve, estimate[i])} ${unit}  (${write(chart.curve, lower[i])} to ${write(chart.curve, upper[i])})`
        : "";
    };

    const axis = { stroke: soft, font: font(1), grid: { stroke: line, width: 1 }, ticks: { show: false } };
    chart.plot = new uPlot(
      {
        width: Math.max(200, element.clientWidth),
        height: 184,
        padding: [16, 18, 0, 0],
        legend: { show: false },
        tzDate: (seconds) => uPlot.tzDate(new Date(seconds * 1000), "Etc/UTC"),
        cursor: { y: false, drag: { x: false, y: false }, points: { size: 7 }, sync: { key: "rollout" } },
        scales: { x: { time: true }, y: { range: () => range(chart.curve) } },
        axes: [
          { ...axis, grid: { show: false }, size: 26, space: 96, values: (_, ticks) => ticks.map(clock) },
          { ...axis, size: 48, space: 34, values: (_, ticks) => ticks.map((each) => write(chart.curve, each, decimals(chart.curve, ticks))) },
        ],
        series: [
          {},
          { stroke: accent, width: 0.5, points: { show: false } },
          { stroke: accent, width: 0.5, points: { show: false } },
          { stroke: accent, width: 2, points: { show: false } },
          { stroke: soft, width: 1, dash: [2, 3], points: { show: true, size: 4, fill: soft, stroke: soft } },
        ],
        bands: [{ series: [2, 1], fill: wash }],
        hooks: { drawClear: [paintBeneath], draw: [paintLines], setCursor: [showHover] },
      },
      columns(curve),
      element,
    );
    element.append(hover);
    return chart;
  }

  // As many decimals as the ticks of the axis need.
  function decimals(curve, ticks) {
    const factor = curve.form === "ratio" ? 1 : curve.factor;
    const step = ticks.length > 1 ? Math.abs(ticks[1] - ticks[0]) * factor : 1;
    return [0, 1, 2, 3].find((places) => Math.abs(step * 10 ** places - Math.round(step * 10 ** places)) < 1e-6) ?? 4;
  }

  const forget = () => {
    for (const { plot, element } of charts.values()) {
      plot.destroy();
      element.replaceChildren();
    }
    charts.clear();
  };

  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    forget();
    draw();
  });
  new ResizeObserver(() => {
    for (const { plot, element } of charts.values()) {
      if (element.clientWidth && element.clientWidth !== plot.width) {
        plot.setSize({ width: element.clientWidth, height: plot.height });
      }
    }
  }).observe(live);

  refresh();
})();
