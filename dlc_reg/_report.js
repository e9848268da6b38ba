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
  const eye = (direction, distance) => ({ x: direction[0] * distance, y: direction[1] * distance, z: direction[2] * distance });
  const vector = (v) => ({ x: v[0], y: v[1], z: v[2] });
  const DISTANCE = 1.7;
  const VIEWS = {
    start: { eye: eye(data.view, DISTANCE), up: vector(data.up) },
    x: { eye: eye([1, 0, 0], DISTANCE), up: vector([0, 0, 1]) },
    y: { eye: eye([0, -1, 0], DISTANCE), up: vector([0, 0, 1]) },
    z: { eye: eye([0, 0, 1], DISTANCE), up: vector([0, 1, 0]) },
  };
  const camera = (name) => ({ ...VIEWS[name], center: vector([0, 0, 0]) });

  const axis = (range) => ({
    range, title: { text: "" }, showbackground: false, showspikes: false, zeroline: false, showticklabels: false, showgrid: false,
  });
  const sceneLayout = (ranges) => ({
    margin: { l: 0, r: 0, t: 0, b: 0 }, paper_bgcolor: "rgba(0,0,0,0)", showlegend: false,
    font: { color: colour("text"), family: "system-ui, sans-serif", size: 12 },
    scene: { aspectmode: "data", dragmode: "orbit", camera: camera("start"), xaxis: axis(ranges[0]), yaxis: axis(ranges[1]), zaxis: axis(ranges[2]) },
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

  const drawScenes = () => {
    const ranges = bounds([clouds.before, clouds.after, clouds.target]);
    const target = points(clouds.target, shades.target, TARGET);
    const near = where((value) => value < data.limit);
    const far = where((value) => value >= data.limit);
    const bar = { title: { text: "distance", side: "right" }, thickness: 12, len: 0.8, outlinewidth: 0, nticks: 6, exponentformat: "power" };
    return [
      Plotly.newPlot("before", [target, points(clouds.before, shades.before, SOURCE)], sceneLayout(ranges), CONFIG),
      Plotly.newPlot("after", [target, points(clouds.after, shades.after, SOURCE)], sceneLayout(ranges), CONFIG),
      Plotly.newPlot("heat", [
        points(far.cloud, colour("grey"), undefined),
        points(near.cloud, near.values, HEAT, { cmin: 0, cmax: data.heatMax, colorbar: bar, showscale: true }),
      ], sceneLayout(bounds([clouds.after])), CONFIG),
    ];
  };

  const linkScenes = () => {
    const scenes = ["before", "after", "heat"].map(byId);
    let moving = false;
    const follow = (leader, changes) => {
      const view = changes["scene.camera"];
      if (!view || moving) return;
      moving = true;
      Promise.all(scenes.filter((scene) => scene !== leader).map((scene) => Plotly.relayout(scene, { "scene.camera": view })))
        .finally(() => { moving = false; });
    };
    for (const scene of scenes) {
      scene.on("plotly_relayouting", (changes) => follow(scene, changes));
      scene.on("plotly_relayout", (changes) => follow(scene, changes));
    }
  };
  for (const button of document.querySelectorAll("[data-view]")) {
    button.addEventListener("click", () => Plotly.relayout("after", { "scene.camera": camera(button.dataset.view) }));
  }

  const chartLayout = (x, y) => ({
    margin: { l: 64, r: 22, t: 18, b: 58 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", showlegend: false, bargap: 0.06,
    font: { color: colour("text"), family: "system-ui, sans-serif", size: 12 }, dragmode: false, hovermode: "closest",
    xaxis: { title: { text: x }, gridcolor: colour("line"), zeroline: false, fixedrange: true, exponentformat: "power" },
    yaxis: { title: { text: y }, gridcolor: colour("line"), zeroline: false, fixedrange: true, rangemode: "tozero", exponentformat: "power", automargin: true },
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
