"use strict";
// Turns the clouds, in WebGL and without perspective, so that one scale bar holds for all of a view. Everything else on the
// page is there without this script.
(() => {
  const root = document.documentElement;
  const byId = (id) => document.getElementById(id);
  // The page says what became of it, for people who test it and for the style sheet.
  const say = (key, value) => { root.dataset[key] = value; };
  document.addEventListener("securitypolicyviolation", (event) => say("violation", event.violatedDirective + " " + event.blockedURI));

  byId("copy").addEventListener("click", async () => {
    let copied = true;
    try {
      await navigator.clipboard.writeText(byId("matrix").textContent);
    } catch {  // the clipboard is closed to files in some browsers
      getSelection().selectAllChildren(byId("matrix"));
      copied = document.execCommand("copy");
    }
    byId("copied").textContent = copied ? "Copied" : "Press Ctrl+C to copy the selection";
  });
  addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((details) => { details.open = true; }));

  const bytes = (text) => Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  const sum = (a, b) => a.map((value, k) => value + b[k]);
  const times = (v, by) => v.map((value) => value * by);
  const mixed = (a, b, cos, sin) => sum(times(a, cos), times(b, sin));
  const cross = (a, b) => [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]];

  // Colours of values 0 to 254 along a ramp of hexadecimal colours; 255 is grey, "no value".
  const painted = (values, ramp) => {
    const ends = ramp.map((colour) => [1, 3, 5].map((k) => parseInt(colour.slice(k, k + 2), 16)));
    const palette = Array.from({ length: 255 }, (_, value) => {
      const at = (value / 254) * (ends.length - 1), k = Math.min(Math.floor(at), ends.length - 2);
      return mixed(ends[k], ends[k + 1], 1 - (at - k), at - k);
    });
    palette.push([140, 148, 157]);
    const colours = new Uint8Array(3 * values.length);
    values.forEach((value, i) => colours.set(palette[value], 3 * i));
    return colours;
  };

  const VERTEX = `
    attribute vec3 point, colour;
    uniform vec3 centre, right, up, from;
    uniform float size;
    varying vec3 tint;
    void main() {
      vec3 at = point - centre;
      gl_Position = vec4(dot(at, right), dot(at, up), -dot(at, from), 1.0);
      gl_PointSize = size;
      tint = colour;
    }`;
  const FRAGMENT = `
    precision mediump float;
    varying vec3 tint;
    void main() {
      vec2 off = gl_PointCoord - 0.5;
      if (dot(off, off) > 0.25) discard;
      gl_FragColor = vec4(tint, 1.0);
    }`;

  const programOf = (gl) => {
    const program = gl.createProgram();
    for (const [kind, text] of [[gl.VERTEX_SHADER, VERTEX], [gl.FRAGMENT_SHADER, FRAGMENT]]) {
      const shader = gl.createShader(kind);
      gl.shaderSource(shader, text);
      gl.compileShader(shader);
      gl.attachShader(program, shader);
    }
    gl.linkProgram(program);
    if (!gl.getProgramParameter(program, gl.LINK_STATUS)) throw new Error(gl.getProgramInfoLog(program) || "WebGL");
    gl.useProgram(program);
    gl.enable(gl.DEPTH_TEST);
    return program;
  };

  const sceneOf = (canvas, gl, clouds) => {
    const program = programOf(gl);
    const points = new Float32Array(clouds.reduce((n, { points }) => n + points.length, 0));
    const colours = new Uint8Array(points.length);
    let filled = 0;
    for (const cloud of clouds) {
      points.set(cloud.points, filled);
      colours.set(cloud.colours, filled);
      filled += cloud.points.length;
    }
    for (const [name, values, type] of [["point", points, gl.FLOAT], ["colour", colours, gl.UNSIGNED_BYTE]]) {
      const place = gl.getAttribLocation(program, name);
      gl.bindBuffer(gl.ARRAY_BUFFER, gl.createBuffer());
      gl.bufferData(gl.ARRAY_BUFFER, values, gl.STATIC_DRAW);
      gl.enableVertexAttribArray(place);
      gl.vertexAttribPointer(place, 3, type, type !== gl.FLOAT, 0, 0);
    }
    const uniform = Object.fromEntries(["centre", "right", "up", "from", "size"].map((name) => [name, gl.getUniformLocation(program, name)]));
    let low = Infinity, high = -Infinity;
    for (const value of points) { low = Math.min(low, value); high = Math.max(high, value); }
    return { canvas, gl, points, uniform, deep: 2 * (high - low) || 1 };
  };

  const view = { right: [1, 0, 0], up: [0, 1, 0], from: [0, 0, 1], zoom: 1, moved: [0, 0, 0] };
  const scenes = [];

  // The middle and half the extent of a scene's points as this view sees them, all but a few far ones.
  const frame = (scene) => {
    const { points } = scene, n = points.length / 3;
    scene.centre = [0, 0, 0];
    scene.half = [view.right, view.up, view.from].map((axis) => {
      const along = new Float32Array(n);
      for (let i = 0; i < n; i += 1) along[i] = points[3 * i] * axis[0] + points[3 * i + 1] * axis[1] + points[3 * i + 2] * axis[2];
      along.sort();
      const few = Math.floor(0.001 * n), low = along[few], high = along[n - 1 - few];
      scene.centre = sum(scene.centre, times(axis, (low + high) / 2));
      return (high - low) / 2;
    });
  };
  const scaleOf = ({ canvas, half }) => 0.46 * view.zoom * Math.min(canvas.clientWidth / (half[0] || 1e-9), canvas.clientHeight / (half[1] || 1e-9));  // pixels a unit

  const draw = (scene) => {
    const { canvas, gl, uniform } = scene, ratio = Math.min(devicePixelRatio, 2);
    const wide = canvas.clientWidth, high = canvas.clientHeight, scale = scaleOf(scene);
    if (!wide || !high) return;
    scene.drawn = wide + " " + high;
    for (const [side, pixels] of [["width", Math.round(wide * ratio)], ["height", Math.round(high * ratio)]]) {
      if (canvas[side] !== pixels) canvas[side] = pixels;
    }
    gl.viewport(0, 0, canvas.width, canvas.height);
    gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
    gl.uniform3fv(uniform.centre, sum(scene.centre, view.moved));
    gl.uniform3fv(uniform.right, times(view.right, (2 * scale) / wide));
    gl.uniform3fv(uniform.up, times(view.up, (2 * scale) / high));
    gl.uniform3fv(uniform.from, times(view.from, 1 / scene.deep));
    const even = Math.sqrt((wide * high) / (scene.points.length / 3));  // pixels between points spread over all of it
    gl.uniform1f(uniform.size, ratio * Math.min(Math.max(even, 1.8), 0.011 * wide) * Math.sqrt(Math.max(view.zoom, 1)));
    gl.drawArrays(gl.POINTS, 0, scene.points.length / 3);
    const most = (0.3 * wide) / scale, power = 10 ** Math.floor(Math.log10(most));
    const length = power * (most >= 5 * power ? 5 : most >= 2 * power ? 2 : 1);
    const ruler = canvas.nextElementSibling;
    ruler.style.width = length * scale + "px";
    ruler.textContent = String(Number(length.toPrecision(1)));
  };
  let waiting = false;
  const redraw = () => {
    say("view", JSON.stringify([...view.from, ...view.moved, view.zoom].map((value) => Number(value.toFixed(6)))));
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; scenes.forEach(draw); });
  };

  const data = JSON.parse(byId("data").textContent);
  const VIEWS = {
    start: { from: data.view, up: data.up },
    x: { from: [1, 0, 0], up: [0, 0, 1] },
    y: { from: [0, -1, 0], up: [0, 0, 1] },
    z: { from: [0, 0, 1], up: [0, 1, 0] },
  };
  const buttons = document.querySelectorAll("[data-view]");
  const press = (name) => buttons.forEach((button) => button.setAttribute("aria-pressed", String(button.dataset.view === name)));
  const look = (name) => {
    const { from, up } = VIEWS[name];
    Object.assign(view, { from, up, right: cross(up, from), zoom: 1, moved: [0, 0, 0] });
    scenes.forEach(frame);
    press(name);
    redraw();
  };
  // What is in front follows the pointer: the eye goes the other way.
  const turn = (across, down) => {
    const { right, from } = view;
    view.right = mixed(right, from, Math.cos(across), Math.sin(across));
    const level = mixed(from, right, Math.cos(across), -Math.sin(across));
    const { up } = view;
    view.up = mixed(up, level, Math.cos(down), -Math.sin(down));
    view.from = mixed(level, up, Math.cos(down), Math.sin(down));
    press(null);
    redraw();
  };
  const move = (scene, across, down) => {  // pixels
    const scale = scaleOf(scene);
    view.moved = sum(view.moved, sum(times(view.right, -across / scale), times(view.up, down / scale)));
    redraw();
  };
  const zoom = (by) => {
    view.zoom = Math.min(Math.max(view.zoom * by, 0.1), 1000);
    redraw();
  };

  const listen = (scene) => {
    const { canvas } = scene, fingers = new Map();
    const lift = (event) => fingers.delete(event.pointerId);
    canvas.addEventListener("pointerdown", (event) => {
      fingers.set(event.pointerId, [event.clientX, event.clientY]);
      canvas.setPointerCapture(event.pointerId);
    });
    canvas.addEventListener("pointerup", lift);
    canvas.addEventListener("pointercancel", lift);
    canvas.addEventListener("pointermove", (event) => {
      const was = fingers.get(event.pointerId), now = [event.clientX, event.clientY];
      if (!was) return;
      const [across, down] = [now[0] - was[0], now[1] - was[1]];
      fingers.set(event.pointerId, now);
      if (fingers.size > 1) {  // one finger at a time: the other stands still, and their middle moves by half
        const [, other] = [...fingers].find(([id]) => id !== event.pointerId);
        zoom(Math.hypot(now[0] - other[0], now[1] - other[1]) / Math.max(Math.hypot(was[0] - other[0], was[1] - other[1]), 1));
        move(scene, across / 2, down / 2);
      } else if (event.shiftKey) move(scene, across, down);
      else turn(0.01 * across, 0.01 * down);
    });
    canvas.addEventListener("wheel", (event) => {
      if (!event.ctrlKey) return;  // the page scrolls
      event.preventDefault();
      zoom(Math.exp(-0.002 * event.deltaY * (event.deltaMode === 1 ? 16 : 1)));
    }, { passive: false });
    canvas.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.altKey || event.metaKey) return;
      const arrow = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
      if (arrow && event.shiftKey) move(scene, 30 * arrow[0], 30 * arrow[1]);
      else if (arrow) turn(0.15 * arrow[0], 0.15 * arrow[1]);
      else if (event.key === "+" || event.key === "=") zoom(1.25);
      else if (event.key === "-") zoom(0.8);
      else if (event.key === "Home") look("start");
      else return;
      event.preventDefault();
    });
    canvas.addEventListener("webglcontextlost", () => root.classList.remove("drawing"));
    new ResizeObserver(() => { if (scene.drawn !== canvas.clientWidth + " " + canvas.clientHeight) redraw(); }).observe(canvas);
  };
  buttons.forEach((button) => button.addEventListener("click", () => look(button.dataset.view)));
  document.querySelectorAll("[data-zoom]").forEach((button) => button.addEventListener("click", () => zoom(Number(button.dataset.zoom))));

  try {
    const clouds = Object.fromEntries(Object.entries(data.clouds).map(([name, { points, values, ramp }]) =>
      [name, { points: new Float32Array(bytes(data.points[points]).buffer), colours: painted(bytes(values), ramp) }]));
    for (const [id, shown] of Object.entries(data.views)) {
      const gl = byId(id).getContext("webgl");
      if (!gl) break;
      scenes.push(sceneOf(byId(id), gl, shown.map((name) => clouds[name])));
    }
    if (scenes.length === 3) {
      root.classList.add("drawing");
      scenes.forEach(listen);
      look("start");
    }
    requestAnimationFrame(() => {  // after the first drawing, which waits in the same frame
      scenes.forEach(({ gl }) => gl.finish());
      say("scenes", String(root.classList.contains("drawing") ? 3 : 0));
      say("milliseconds", String(Math.round(performance.now())));  // since the page was opened
    });
  } catch (error) {
    say("error", String(error));
    root.classList.remove("drawing");
  }
})();
