"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const root = document.documentElement;
  const byId = (id) => document.getElementById(id);

  // The page says what became of it, for people who test it and for the style sheet.
  const say = (key, value) => { root.dataset[key] = value; };
  document.addEventListener("securitypolicyviolation", (event) => say("violation", event.violatedDirective + " " + event.blockedURI));

  byId("copy").addEventListener("click", async () => {
    const text = byId("matrix").textContent;
    let copied = true;
    try {
      await navigator.clipboard.writeText(text);
    } catch {  // the clipboard is closed to files in some browsers
      getSelection().selectAllChildren(byId("matrix"));
      copied = document.execCommand("copy");
    }
    byId("copied").textContent = copied ? "Copied" : "Press Ctrl+C to copy the selection";
  });

  const floats = (text) => {
    const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
    return new Float32Array(bytes.buffer);
  };
  const columns = (text) => {
    const all = floats(text);
    const pick = (offset) => Float32Array.from({ length: all.length / 3 }, (_, i) => all[3 * i + offset]);
    return { x: pick(0), y: pick(1), z: pick(2) };
  };
  const colour = (name) => getComputedStyle(root).getPropertyValue("--" + name).trim();

  const SOURCE = [[0, "#7a3b00"], [1, "#f5a623"]];
  const TARGET = [[0, "#0a3561"], [1, "#4aa5e8"]];
  const HEAT = [[0, "#440154"], [0.25, "#3b528b"], [0.5, "#21918c"], [0.75, "#5ec962"], [1, "#fde725"]];

  const clouds = { before: columns(data.before), after: columns(data.after), target: columns(data.target) };
  const shades = { before: floats(data.beforeShade), after: floats(data.afterShade), target: floats(data.targetShade) };
  const residuals = floats(data.residuals);

  const SIZE = residuals.length + clouds.target.x.length > 10000 ? 2 : 3.5;
  const CONFIG = { displaylogo: false, displayModeBar: false, responsive: true, scrollZoom: true };
  const bounds = (parts) => ["x", "y", "z"].map((axis) => {
    let low = Infinity, high = -Infinity;
    for (const part of parts) for (const value of part[axis]) { low = Math.min(low, value); high = Math.max(high, value); }
    const margin = 0.02 * (high - low) || 1e-9;
    return [low - margin, high + margin];
  });
  const vector = (v) => ({ x: v[0], y: v[1], z: v[2] });
  const scaled = (v, by) => ({ x: v.x * by, y: v.y * by, z: v.z * by });
  const VIEWS = {
    start: { from: data.view, up: data.up },
    x: { from: [1, 0, 0], up: [0, 0, 1] },
    y: { from: [0, -1, 0], up: [0, 0, 1] },
    z: { from: [0, 0, 1], up: [0, 1, 0] },
  };
  // The edges of a scene's box in Plotly's units. Not left to its aspectmode "data": that looks at the points of one
  // scene, while a range here may span those of two, and the drawing would be squeezed.
  const box = (ranges) => {
    const size = Math.cbrt(ranges.reduce((product, [low, high]) => product * (high - low), 1));
    return vector(ranges.map(([low, high]) => (high - low) / size));
  };
  // Through Plotly's lens of 45 degrees. Returns how far the eye must be to see all points but a few far ones, where the free
  // part of the panel is `shape` times as wide as it is high.
  const distance = (parts, ranges, { from, up }, shape = 1) => {
    const right = [up[1] * from[2] - up[2] * from[1], up[2] * from[0] - up[0] * from[2], up[0] * from[1] - up[1] * from[0]];
    const scale = box(ranges).x / (ranges[0][1] - ranges[0][0]);
    const lens = Math.tan(Math.PI / 8);
    const needed = [];
    for (const part of parts) {
      for (let i = 0; i < part.x.length; i += 1) {
        const at = ["x", "y", "z"].map((axis, k) => (part[axis][i] - (ranges[k][0] + ranges[k][1]) / 2) * scale);
        const along = (v) => at[0] * v[0] + at[1] * v[1] + at[2] * v[2];
        needed.push(Math.max(Math.abs(along(up)), Math.abs(along(right)) / shape) / lens + along(from));
      }
    }
    needed.sort((a, b) => a - b);
    return 1.1 * needed[Math.floor(0.998 * (needed.length - 1))];
  };
  const cameraOf = (parts, ranges, view, shape) => {
    const { from, up } = VIEWS[view];
    return { eye: scaled(vector(from), distance(parts, ranges, VIEWS[view], shape)), up: vector(up), center: vector([0, 0, 0]) };
  };

  const axis = (range) => ({
    range, title: { text: "" }, showbackground: false, showspikes: false, zeroline: false, showticklabels: false, showgrid: false,
  });
  const sceneLayout = (parts, ranges, shape) => ({
    margin: { l: 0, r: 0, t: 0, b: 0 }, paper_bgcolor: "rgba(0,0,0,0)", showlegend: false,
    font: { color: colour("text"), family: "system-ui, sans-serif", size: 12 },
    scene: { aspectmode: "manual", aspectratio: box(ranges), dragmode: "orbit", camera: cameraOf(parts, ranges, "start", shape), xaxis: axis(ranges[0]), yaxis: axis(ranges[1]), zaxis: axis(ranges[2]) },
  });
  const points = (cloud, values, scale, extra = {}) => ({
    type: "scatter3d", mode: "markers", ...cloud, hoverinfo: "skip",
    marker: { size: SIZE, color: values, cmin: 0, cmax: 1, colorscale: scale, line: { width: 0 }, ...extra },
  });
  const where = (test) => {
    const kept = [];
    residuals.forEach((value, i) => { if (test(value)) kept.push(i); });
    const take = (all) => Float32Array.from(kept, (i) => all[i]);
    return { cloud: { x: take(clouds.after.x), y: take(clouds.after.y), z: take(clouds.after.z) }, values: take(residuals) };
  };

  const everything = [clouds.before, clouds.after, clouds.target];
  const SCENES = { before: everything, after: everything, heat: [clouds.after] };
  const SHAPES = { before: 1, after: 1, heat: 0.7 };  // beside the heat map stands its colour bar
  const ranges = Object.fromEntries(Object.entries(SCENES).map(([id, parts]) => [id, bounds(parts)]));

  const drawScenes = () => {
    const target = points(clouds.target, shades.target, TARGET);
    const near = where((value) => value < data.limit);
    const far = where((value) => value >= data.limit);
    const bar = { title: { text: "distance", side: "right" }, thickness: 12, len: 0.8, outlinewidth: 0, nticks: 6, exponentformat: "power", minexponent: 5 };
    const traces = {
      before: [target, points(clouds.before, shades.before, SOURCE)],
      after: [target, points(clouds.after, shades.after, SOURCE)],
      heat: [
        points(far.cloud, colour("grey"), undefined),
        points(near.cloud, near.values, HEAT, { cmin: 0, cmax: data.heatMax, colorbar: bar, showscale: true }),
      ],
    };
    return Object.keys(SCENES).map((id) => Plotly.newPlot(id, traces[id], sceneLayout(SCENES[id], ranges[id], SHAPES[id]), CONFIG));
  };

  // The scenes turn together. The heat map has a box of its own, so its eye moves by the ratio of the two distances.
  const reach = Object.fromEntries(Object.keys(SCENES).map((id) => [id, distance(SCENES[id], ranges[id], VIEWS.start, SHAPES[id])]));
  const linkScenes = () => {
    let moving = false;
    const follow = (leader, changes) => {
      const view = changes["scene.camera"];
      if (!view || moving) return;
      moving = true;
      const others = Object.keys(SCENES).filter((id) => id !== leader);
      Promise.all(others.map((id) => {
        const by = reach[id] / reach[leader];
        return Plotly.relayout(id, { "scene.camera": { eye: scaled(view.eye, by), center: scaled(view.center, by), up: view.up } });
      })).finally(() => { moving = false; });
    };
    for (const id of Object.keys(SCENES)) {
      byId(id).on("plotly_relayouting", (changes) => follow(id, changes));
      byId(id).on("plotly_relayout", (changes) => follow(id, changes));
    }
  };
  for (const button of document.querySelectorAll("[data-view]")) {
    button.addEventListener("click", () => {
      Plotly.relayout("after", { "scene.camera": cameraOf(SCENES.after, ranges.after, button.dataset.view) });
    });
  }

  const chartLayout = (x, y) => ({
    margin: { l: 64, r: 22, t: 18, b: 58 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", showlegend: false, bargap: 0.06,
    font: { color: colour("text"), family: "system-ui, sans-serif", size: 12 }, dragmode: false, hovermode: "closest",
    xaxis: { title: { text: x }, gridcolor: colour("line"), zeroline: false, fixedrange: true, exponentformat: "power", minexponent: 5 },
    yaxis: { title: { text: y }, gridcolor: colour("line"), zeroline: false, fixedrange: true, rangemode: "tozero", exponentformat: "power", minexponent: 5, automargin: true },
  });

  const drawHistogram = () => {
    const bins = 30, width = data.limit / bins, counts = new Array(bins + 1).fill(0);
    for (const value of residuals) counts[Math.min(bins, Math.floor(value / width))] += 1;
    const share = counts.map((count) => (100 * count) / residuals.length);
    const beyond = share.pop();
    const layout = chartLayout("distance to the target, in the points’ unit", "source points [%]");
    const traces = [{
      type: "bar", x: share.map((_, i) => (i + 0.5) * width), y: share, width: 0.94 * width,
      marker: { color: share.map((_, i) => (i + 0.5) * width), cmin: 0, cmax: data.heatMax, colorscale: HEAT },
      hovertemplate: "%{y:.1f}% near %{x:.3g}<extra></extra>",
    }];
    layout.xaxis.range = [0, data.limit];
    if (beyond > 0) {
      layout.annotations = [{
        xref: "paper", yref: "paper", x: 1, y: 1, xanchor: "right", yanchor: "top", showarrow: false,
        text: beyond.toFixed(1) + "% lie farther away<br>(grey in the scene)", align: "right", font: { color: colour("soft") },
      }];
    }
    return Plotly.newPlot("histogram", traces, layout, CONFIG);
  };

  // One curve a voxel size: the distance of matches shrinks with it, so that values compare only within one.
  const stages = [];
  data.history.forEach((record, i) => {
    if (i === 0 || record.voxel !== data.history[i - 1].voxel) stages.push({ voxel: record.voxel, steps: [] });
    stages[stages.length - 1].steps.push(i);
  });
  const stageName = (voxel) => (voxel === null ? "" : voxel === 0 ? "all points" : "voxel " + Number(voxel.toPrecision(2)));

  const drawIterations = () => {
    const curve = (id, key, label) => {
      const layout = chartLayout("step", label);
      const traces = stages.map(({ voxel, steps }) => ({
        type: "scatter", mode: "lines+markers", x: steps.map((i) => i + 1), y: steps.map((i) => data.history[i][key]),
        line: { color: colour("accent"), width: 2 }, marker: { size: 6 },
        hovertemplate: stageName(voxel) + " step %{x}: %{y:.4g}<extra></extra>",
      }));
      layout.margin.t = 34;
      layout.xaxis.range = [0.5, data.history.length + 0.5];
      layout.xaxis.tickformat = "d";
      layout.shapes = stages.slice(1).map(({ steps }) => ({
        type: "line", x0: steps[0] + 0.5, x1: steps[0] + 0.5, y0: 0, y1: 1, yref: "paper", line: { color: colour("grey"), width: 1, dash: "dot" },
      }));
      layout.annotations = stages.map(({ voxel, steps }) => ({
        x: (steps[0] + steps[steps.length - 1]) / 2 + 1, y: 1, yref: "paper", yanchor: "bottom", showarrow: false, text: stageName(voxel),
        font: { color: colour("soft"), size: 11 },
      }));
      return Plotly.newPlot(id, traces, layout, CONFIG);
    };
    if (!data.history.some((record) => record.fitness !== null || record.rmse !== null)) {
      byId("iterations").hidden = true;
      byId("iterations-note").textContent = "No iterations were recorded.";
      return [];
    }
    return [curve("fitness", "fitness", "fitness"), curve("rmse", "rmse", "RMSE")];
  };

  const hasWebGL = () => {
    try {
      return Boolean(document.createElement("canvas").getContext("webgl"));
    } catch {
      return false;
    }
  };

  const draw = async () => {
    const flat = [drawHistogram(), ...drawIterations()];
    if (hasWebGL()) {
      root.classList.add("drawing");
      await Promise.all(drawScenes());
      linkScenes();
      say("scenes", "3");
    }
    await Promise.all(flat);
    say("drawn", String(document.querySelectorAll(".js-plotly-plot").length));
  };

  const report = draw().catch((error) => { say("error", String(error)); root.classList.remove("drawing"); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", async () => { await report; await draw(); });
})();
