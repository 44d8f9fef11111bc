// The viewer: 8-bit pictures made by the node for the asked window, drawn pixel for pixel on a canvas that the style
// brings to true proportions. Every number beside the picture belongs to the picture that is drawn, never to the next.

const AHEAD = 8, BEHIND = 3, AT_ONCE = 4;
const STAY_MS = 30_000;
const MOST_PICTURES = 240, MOST_BLOCKS = 10;

class Kept extends Map {
  // The values asked for last, so many of them.
  constructor(most) { super(); this.most = most; }
  take(key) {
    const value = super.get(key);
    if (value !== undefined) { super.delete(key); super.set(key, value); }
    return value;
  }
  put(key, value) {
    super.set(key, value);
    while (this.size > this.most) {
      const [oldest, gone] = this.entries().next().value;
      super.delete(oldest);
      gone.close?.();
    }
  }
}

const number = (value, digits = 1) => value.toFixed(digits).replace("-", "\u2212");
const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

class Viewer {
  constructor(root) {
    this.root = root;
    this.base = `/series/${root.dataset.series}`;
    for (const part of ["stage", "canvas", "slider", "where", "place", "uid", "message", "corner", "window", "crosshair"])
      this[part] = root.querySelector(`[data-part=${part}]`);
    this.context = this.canvas.getContext("2d");
    this.pictures = new Kept(MOST_PICTURES);
    this.blocks = new Kept(MOST_BLOCKS);
    this.failed = new Map();
    this.loading = new Map();
    this.overlays = [];
    this.plane = "axial";
    this.index = { axial: 0, coronal: 0, sagittal: 0 };
    this.centre = -600; this.width = 1500;
    this.step = 1; this.zoom = 1; this.pan = [0, 0]; this.drag = "slices";
    this.listen();
  }

  // All that is fetched follows from what a person does, so it keeps the person logged in

  ask(url) {
    this.asked = Date.now();
    return fetch(url);
  }

  stay() {
    // Whoever looks at pictures that are here already asks for none.
    if (Date.now() - this.asked > STAY_MS) this.ask("/here");
  }

  // What there is

  async glimpse() {
    // The middle image, while the node still reads the headers of the others; without a number, because none is known.
    if (location.hash || this.root.dataset.start) return;
    const url = `${this.base}/first/${this.root.dataset.first}.png?c=${this.centre}&w=${this.width}`;
    const answer = await this.ask(url);
    if (!answer.ok) return;
    const picture = await createImageBitmap(await answer.blob(), { colorSpaceConversion: "none" });
    if (this.drawn) return;
    this.canvas.width = picture.width;
    this.canvas.height = picture.height;
    this.context.drawImage(picture, 0, 0);
    const scale = Math.min(this.stage.clientWidth / picture.width, this.stage.clientHeight / picture.height);
    this.canvas.style.width = `${picture.width * scale}px`;
    this.canvas.style.height = `${picture.height * scale}px`;
    this.root.dataset.seen = "first";
  }

  async open() {
    const answer = await this.ask(`${this.base}/images.json`);
    if (!answer.ok) { this.say(answer.status === 401 ? "Log in again to see the images." : "The images cannot be opened."); return; }
    this.series = await answer.json();
    this.failed.clear();
    this.pictures.clear();
    this.blocks.clear();
    const { images, planes } = this.series;
    this.note();
    for (const button of this.root.querySelectorAll("[data-plane]"))
      button.disabled = button.dataset.plane !== "axial" && !planes[button.dataset.plane];
    if (!images.length) { this.say("There is no image to show."); this.root.classList.add("empty"); return; }
    for (const plane of Object.keys(this.index)) this.index[plane] = Math.floor((this.count(plane) - 1) / 2);
    this.goTo(location.hash) || this.goTo(this.root.dataset.start);
    this.choosePlane(this.plane);
    this.openOverlays();
  }

  async openOverlays() {
    const answer = await this.ask(`${this.base}/overlays.json`);
    if (!answer.ok) return;
    const before = new Map(this.overlays.map((one) => [one.key, one]));
    this.overlays = (await answer.json()).map((one) => {
      const key = `${one.object}-${one.segment}`, old = before.get(key);
      return { ...one, key, on: old?.on ?? false, opacity: old?.opacity ?? 0.7 };
    });
    this.listOverlays();
    this.want();
  }

  note() {
    // What is missing of the series, in words.
    const { gone, unreadable, why_no_volume, images } = this.series;
    const lines = [];
    const files = (count) => `${count} image${count === 1 ? "" : "s"}`;
    if (gone.retention) lines.push(`${files(gone.retention)} deleted by the node's retention, as the site has set it.`);
    if (gone.missing) lines.push(`${files(gone.missing)} lost: the file is missing.`);
    if (gone.corrupt) lines.push(`${files(gone.corrupt)} damaged on the disk.`);
    if (unreadable) lines.push(`${files(unreadable)} cannot be read.`);
    if (why_no_volume && images.length) lines.push(`Shown one by one, because the images form no volume: ${why_no_volume}`);
    const place = this.root.querySelector("[data-part=notes]");
    place.replaceChildren(...lines.map((line) => Object.assign(document.createElement("li"), { textContent: line })));
    place.hidden = !lines.length;
  }

  count(plane) {
    const shape = this.series.planes[plane];
    return shape ? shape.count : plane === "axial" ? this.series.images.length : 0;
  }

  shape() {
    // Rows, columns and their distances, of the picture that is asked for.
    const shape = this.series.planes[this.plane];
    if (shape) return shape;
    const image = this.series.images[this.index.axial];
    const length = (column) => image.affine ? Math.hypot(...image.affine.map((row) => row[column])) : 1;
    return { rows: image.rows, columns: image.columns, row_mm: length(1), column_mm: length(0), sides: ["", "", "", ""] };
  }

  // What is drawn

  show(index) {
    if (!this.series?.images.length) return;
    const wanted = clamp(Math.round(index), 0, this.count(this.plane) - 1);
    this.step = wanted >= this.index[this.plane] ? 1 : -1;
    this.index[this.plane] = wanted;
    this.slider.value = wanted;
    if (!this.draw()) this.stage.classList.add("waits");
    this.want();
  }

  choosePlane(plane) {
    if (!this.series?.images.length || !this.count(plane)) return;
    if (this.point && plane !== this.plane) this.index[plane] = this.point[{ axial: 2, coronal: 1, sagittal: 0 }[plane]];
    this.plane = plane;
    this.slider.max = this.count(plane) - 1;
    this.slider.setAttribute("aria-label", `Image, ${plane}`);
    for (const button of this.root.querySelectorAll("[data-plane]"))
      button.setAttribute("aria-pressed", String(button.dataset.plane === plane));
    this.show(this.index[plane]);
  }

  chooseWindow(centre, width) {
    this.centre = clamp(Math.round(centre), -2000, 4000);
    this.width = clamp(Math.round(width), 1, 8000);
    let known = false;
    for (const button of this.root.querySelectorAll("[data-centre]")) {
      const same = +button.dataset.centre === this.centre && +button.dataset.width === this.width;
      button.setAttribute("aria-pressed", String(same));
      known ||= same;
    }
    this.window.textContent = `${known ? "" : "own, "}centre ${number(this.centre, 0)}, width ${this.width} HU`;
    this.show(this.index[this.plane]);
  }

  key(plane, index) { return `${plane}/${index}?c=${this.centre}&w=${this.width}`; }

  shadeKey(overlay, index) { return `${this.plane}/${index}/${overlay.key}`; }

  draw() {
    // Draw the asked picture if it is here. False if it is not: the former one stays, with its own number.
    const index = this.index[this.plane], key = this.key(this.plane, index);
    const problem = this.failed.get(`${this.plane}/${index}`);
    const picture = this.pictures.take(key) ?? this.shaded(index);
    if (!picture && !problem) return false;
    this.stage.classList.remove("waits");
    this.canvas.width = picture?.width ?? this.shape().columns;
    this.canvas.height = picture?.height ?? this.shape().rows;
    if (picture) this.context.drawImage(picture, 0, 0);
    for (const overlay of picture ? this.overlays : []) {
      const layer = overlay.on && this.pictures.take(this.shadeKey(overlay, index));
      if (!layer) continue;
      this.context.globalAlpha = overlay.opacity;
      this.context.drawImage(layer, 0, 0); // a map of whole blocks may reach over the edge
      this.context.globalAlpha = 1;
    }
    this.drawn = { plane: this.plane, index, key };
    this.root.dataset.seen = "all";
    this.say(picture ? "" : problem);
    this.tell();
    this.fit();
    return true;
  }

  shaded(index) {
    // The picture made here from HU, while a window is being dragged.
    const block = this.blocks.get(`${this.plane}/${index}`);
    if (!block || !this.dragging) return undefined;
    const { rows, columns } = this.shape();
    const image = new ImageData(columns, rows), words = new Uint32Array(image.data.buffer);
    const low = this.centre - 0.5, span = this.width - 1;
    for (let at = 0; at < block.length; at++) {
      const share = span ? (block[at] - low) / span + 0.5 : block[at] <= low ? 0 : 1;
      const grey = Math.floor(clamp(share, 0, 1) * 255 + 0.5);
      words[at] = 0xff000000 | (grey << 16) | (grey << 8) | grey;
    }
    this.scratch ??= document.createElement("canvas");
    this.scratch.width = columns; this.scratch.height = rows;
    this.scratch.getContext("2d").putImageData(image, 0, 0);
    return this.scratch;
  }

  fit() {
    // The canvas in true proportions, as large as the stage allows.
    const shape = this.shape();
    const wide = shape.columns * shape.column_mm, high = shape.rows * shape.row_mm;
    const scale = Math.min(this.stage.clientWidth / wide, this.stage.clientHeight / high) * this.zoom;
    this.canvas.style.width = `${wide * scale}px`;
    this.canvas.style.height = `${high * scale}px`;
    this.canvas.style.transform = `translate(${this.pan[0]}px, ${this.pan[1]}px)`;
    this.cross();
  }

  tell() {
    // Everything that is said about the drawn picture.
    const { plane, index } = this.drawn, count = this.count(plane), shape = this.shape();
    const where = `${plane === "axial" ? "Slice" : plane[0].toUpperCase() + plane.slice(1)} ${index + 1} of ${count}`;
    this.corner.textContent = `${index + 1} / ${count}`;
    this.root.querySelectorAll("[data-side]").forEach((one, at) => { one.textContent = shape.sides[at]; });
    const height = plane === "axial" ? this.position(0, 0) : null;
    this.where.textContent = height ? `${where}, z ${number(height[2])} mm` : where;
    this.slider.setAttribute("aria-valuetext", this.where.textContent);
    const image = plane === "axial" ? this.series.images[index] : null;
    this.uid.textContent = image ? image.uid + (image.frame ? `, frame ${image.frame}` : "") : "";
    this.root.querySelector("[data-part=uid-row]").hidden = !image;
    const busy = this.failed.has(`${plane}/${index}`) ? "cannot be shown" : "";
    this.canvas.setAttribute("aria-label", `${this.where.textContent} ${busy}`.trim());
    this.readOut();
  }

  voxel(column, row) {
    // Column, row and slice of the volume at a pixel of the drawn picture.
    const { plane, index } = this.drawn, top = this.series.images.length - 1 - row;
    return plane === "axial" ? [column, row, index] : plane === "coronal" ? [column, index, top] : [index, column, top];
  }

  position(column, row) {
    // Patient coordinates (LPS) in mm; null if the header does not say.
    const whole = this.series.affine, own = this.series.images[this.drawn.index]?.affine;
    if (whole) {
      const [x, y, z] = this.voxel(column, row);
      return [0, 1, 2].map((axis) => whole[axis][0] * x + whole[axis][1] * y + whole[axis][2] * z + whole[axis][3]);
    }
    return own ? own.map((line) => line[0] * column + line[1] * row + line[2]) : null;
  }

  readOut() {
    if (!this.drawn || !this.cursor) { this.place.textContent = ""; return; }
    const [column, row] = this.cursor;
    if (column >= this.canvas.width || row >= this.canvas.height) return;
    const at = this.position(column, row), block = this.blocks.get(`${this.drawn.plane}/${this.drawn.index}`);
    const hu = block ? `${number(block[row * this.canvas.width + column], 0)} HU` : "\u2026 HU";
    const mm = at ? `x ${number(at[0])}  y ${number(at[1])}  z ${number(at[2])} mm` : `column ${column}, row ${row}`;
    this.place.textContent = `${mm}   ${hu}`;
    if (!block) this.needBlock();
  }

  cross() {
    // Lines through the marked point, where the other planes cut this one.
    const mark = this.point && this.series.planes[this.plane] ? this.point : null;
    this.crosshair.hidden = !mark;
    if (!mark || !this.drawn) return;
    const top = this.series.images.length - 1 - mark[2];
    const [column, row] = { axial: [mark[0], mark[1]], coronal: [mark[0], top], sagittal: [mark[1], top] }[this.plane];
    const box = this.canvas.getBoundingClientRect(), stage = this.stage.getBoundingClientRect();
    const x = box.left - stage.left + (column + 0.5) / this.canvas.width * box.width;
    const y = box.top - stage.top + (row + 0.5) / this.canvas.height * box.height;
    this.crosshair.style.setProperty("--x", `${x}px`);
    this.crosshair.style.setProperty("--y", `${y}px`);
  }

  say(text) {
    this.message.textContent = text ?? "";
    this.message.hidden = !text;
  }

  // What is fetched: the asked picture first, then those that come next

  want() {
    if (!this.series?.images.length) return;
    const now = this.index[this.plane], last = this.count(this.plane) - 1, order = [now];
    for (let far = 1; far <= AHEAD; far++) order.push(now + far * this.step, ...(far <= BEHIND ? [now - far * this.step] : []));
    this.wanted = [];
    for (const index of order) {
      if (index < 0 || index > last || this.failed.has(`${this.plane}/${index}`)) continue;
      const plane = this.plane, key = this.key(plane, index), token = this.series.token;
      if (!this.dragging || index === now)
        this.wanted.push({ key, index, plane, url: `${this.base}/image/${token}/${plane}/${index}.png?c=${this.centre}&w=${this.width}` });
      for (const overlay of this.overlays)
        if (overlay.on)
          this.wanted.push({ key: this.shadeKey(overlay, index), index, plane, layer: true,
            url: `${this.base}/overlay/${token}/${plane}/${index}/${overlay.key}.png` });
    }
    this.pump();
  }

  pump() {
    for (const one of this.wanted) {
      if (this.loading.size >= AT_ONCE) return;
      if (!this.pictures.has(one.key) && !this.loading.has(one.key) && !this.failed.has(one.key)) this.load(one);
    }
  }

  async load(one) {
    this.loading.set(one.key, one);
    try {
      const answer = await this.ask(one.url);
      if (answer.ok) this.pictures.put(one.key, await createImageBitmap(await answer.blob(), { colorSpaceConversion: "none" }));
      else await this.refused(one, answer);
    } catch { this.failed.set(one.layer ? one.key : `${one.plane}/${one.index}`, "The node does not answer. Reload the page to try again."); }
    this.loading.delete(one.key);
    if (one.plane === this.plane && one.index === this.index[this.plane]) this.draw();
    this.pump();
  }

  async refused(one, answer) {
    if (answer.status === 409 && !this.reopening) {
      this.reopening = true;
      await this.open();
      this.reopening = false;
      return;
    }
    const said = answer.status === 422 ? (await answer.json()).message : answer.status === 401 ? "Log in again to see the images." : "The image cannot be made at the moment.";
    this.failed.set(one.layer ? one.key : `${one.plane}/${one.index}`, said);
  }

  async needBlock() {
    const { plane, index } = this.drawn, key = `${plane}/${index}`;
    if (this.blocks.has(key) || this.asking === key || this.failed.has(key)) return;
    this.asking = key;
    const answer = await this.ask(`${this.base}/hu/${this.series.token}/${plane}/${index}`);
    if (answer.ok) this.blocks.put(key, new Int16Array(await answer.arrayBuffer()));
    if (this.asking === key) this.asking = null;
    this.readOut();
    if (this.dragging) this.draw();
  }

  // What a person does

  listen() {
    this.root.querySelectorAll("[data-plane]").forEach((one) => one.addEventListener("click", () => this.choosePlane(one.dataset.plane)));
    this.root.querySelectorAll("[data-centre]").forEach((one) =>
      one.addEventListener("click", () => this.chooseWindow(+one.dataset.centre, +one.dataset.width)));
    this.root.querySelectorAll("[data-drag]").forEach((one) => one.addEventListener("click", () => {
      this.drag = one.dataset.drag;
      this.root.querySelectorAll("[data-drag]").forEach((other) => other.setAttribute("aria-pressed", String(other === one)));
    }));
    this.slider.addEventListener("input", () => this.show(+this.slider.value));
    this.stage.addEventListener("keydown", (event) => this.press(event));
    for (const name of ["keydown", "wheel", "pointerdown", "input"]) this.root.addEventListener(name, () => this.stay(), { passive: true });
    this.stage.addEventListener("wheel", (event) => this.turn(event), { passive: false });
    this.stage.addEventListener("contextmenu", (event) => event.preventDefault());
    this.stage.addEventListener("dblclick", () => this.resetView());
    for (const name of ["pointerdown", "pointermove", "pointerup", "pointercancel", "pointerleave"])
      this.stage.addEventListener(name, (event) => this[name](event));
    this.fingers = new Map();
    this.root.querySelector("[data-part=copy]").addEventListener("click", () => this.copy());
    addEventListener("hashchange", () => { if (this.goTo(location.hash)) { this.choosePlane(this.plane); this.stage.scrollIntoView({ block: "center" }); } });
    new ResizeObserver(() => this.drawn && this.fit()).observe(this.stage);
  }

  goTo(hash) {
    // "#axial-12": the twelfth image of a plane.
    const [, plane, place] = /^#(axial|coronal|sagittal)-(\d+)$/.exec(hash) ?? [];
    if (!plane || !this.series || !this.count(plane)) return false;
    this.plane = plane;
    this.index[plane] = clamp(+place - 1, 0, this.count(plane) - 1);
    return true;
  }

  press(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const now = this.index[this.plane], last = this.count(this.plane) - 1;
    const places = { ArrowUp: now + 1, ArrowRight: now + 1, ArrowDown: now - 1, ArrowLeft: now - 1,
      PageUp: now + 10, PageDown: now - 10, Home: 0, End: last };
    const acts = { "+": () => this.enlarge(1.25), "=": () => this.enlarge(1.25), "-": () => this.enlarge(0.8), 0: () => this.resetView(),
      a: () => this.choosePlane("axial"), c: () => this.choosePlane("coronal"), s: () => this.choosePlane("sagittal"),
      l: () => this.chooseWindow(-600, 1500), t: () => this.chooseWindow(40, 400), o: () => this.toggleAll(), Escape: () => this.mark(null) };
    if (event.key in places) this.show(places[event.key]);
    else if (event.key in acts) acts[event.key]();
    else return;
    event.preventDefault();
  }

  turn(event) {
    event.preventDefault();
    if (event.ctrlKey) { this.enlarge(event.deltaY < 0 ? 1.1 : 1 / 1.1); return; }
    // A notch of a wheel is 100 or more; a touchpad sends many small amounts.
    this.turned = (this.turned ?? 0) + (event.deltaMode ? event.deltaY * 40 : event.deltaY);
    const steps = Math.trunc(this.turned / 50);
    if (!steps) return;
    this.turned = 0;
    this.show(this.index[this.plane] - Math.sign(steps) * Math.max(1, Math.abs(steps) >> 1));
  }

  pointerdown(event) {
    this.stage.focus({ preventScroll: true });
    this.stage.setPointerCapture(event.pointerId);
    this.fingers.set(event.pointerId, [event.clientX, event.clientY]);
    const how = event.button === 2 || event.shiftKey ? "window" : event.button === 1 ? "move" : this.drag;
    this.held = { how, x: event.clientX, y: event.clientY, index: this.index[this.plane], centre: this.centre, width: this.width,
      pan: [...this.pan], zoom: this.zoom, spread: this.spread(), moved: false };
  }

  spread() {
    const [a, b] = [...this.fingers.values()];
    return b ? Math.hypot(a[0] - b[0], a[1] - b[1]) : 0;
  }

  pointermove(event) {
    this.point_at(event);
    if (!this.held || !this.fingers.has(event.pointerId)) return;
    this.fingers.set(event.pointerId, [event.clientX, event.clientY]);
    const right = event.clientX - this.held.x, down = event.clientY - this.held.y;
    if (Math.hypot(right, down) > 4) this.held.moved = true;
    if (!this.held.moved) return;
    if (this.fingers.size > 1) { this.zoom = clamp(this.held.zoom * this.spread() / (this.held.spread || 1), 1, 8); this.fit(); }
    else if (this.held.how === "slices") this.show(this.held.index - down / Math.max(3, this.stage.clientHeight / this.count(this.plane)));
    else if (this.held.how === "move") { this.pan = [this.held.pan[0] + right, this.held.pan[1] + down]; this.fit(); }
    else {
      this.dragging = true;
      if (this.drawn) this.needBlock();
      this.chooseWindow(this.held.centre + down * 2, this.held.width + right * 4);
    }
  }

  pointerup(event) {
    this.fingers.delete(event.pointerId);
    const held = this.held;
    if (this.fingers.size) return;
    this.held = null;
    if (this.dragging) { this.dragging = false; this.show(this.index[this.plane]); }
    if (held && !held.moved && event.button === 0) { this.point_at(event); this.markHere(); }
  }

  pointercancel(event) { this.fingers.delete(event.pointerId); this.held = null; this.dragging = false; }

  pointerleave(event) { if (event.pointerType === "mouse") { this.cursor = null; this.readOut(); } }

  point_at(event) {
    const box = this.canvas.getBoundingClientRect();
    const column = Math.floor((event.clientX - box.left) / box.width * this.canvas.width);
    const row = Math.floor((event.clientY - box.top) / box.height * this.canvas.height);
    const inside = column >= 0 && row >= 0 && column < this.canvas.width && row < this.canvas.height;
    this.cursor = inside ? [column, row] : null;
    if (this.drawn) this.readOut();
  }

  markHere() { if (this.cursor && this.drawn && this.series.affine) this.mark(this.voxel(...this.cursor)); }

  mark(point) { this.point = point; if (this.drawn) this.cross(); }

  enlarge(by) { this.zoom = clamp(this.zoom * by, 1, 8); if (this.zoom === 1) this.pan = [0, 0]; if (this.drawn) this.fit(); }

  resetView() { this.zoom = 1; this.pan = [0, 0]; if (this.drawn) this.fit(); }

  toggleAll() {
    const on = !this.overlays.some((one) => one.on);
    this.overlays.forEach((one) => { one.on = on; });
    this.listOverlays();
    this.show(this.index[this.plane]);
  }

  async copy() {
    const button = this.root.querySelector("[data-part=copy]");
    try {
      await navigator.clipboard.writeText(this.series.images[this.drawn.index].uid);
      button.textContent = "Copied";
    } catch {
      // Without TLS a browser gives no clipboard: the text is selected instead.
      getSelection().selectAllChildren(this.uid);
      button.textContent = "Selected";
    }
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  }

  listOverlays() {
    const list = this.root.querySelector("[data-part=overlays]"), sample = this.root.querySelector("template").content;
    list.replaceChildren(...this.overlays.map((overlay) => {
      const row = sample.cloneNode(true).firstElementChild;
      const [check, opacity] = row.querySelectorAll("input"), go = row.querySelector("button");
      row.querySelector("[data-part=swatch]").style.background = overlay.colour;
      row.querySelector("[data-part=label]").textContent = overlay.label;
      row.querySelector("[data-part=model]").textContent = overlay.model;
      check.checked = overlay.on;
      check.addEventListener("change", () => { overlay.on = check.checked; this.show(this.index[this.plane]); });
      opacity.value = overlay.opacity;
      opacity.setAttribute("aria-label", `Opacity of ${overlay.label}`);
      opacity.addEventListener("input", () => { overlay.opacity = +opacity.value; this.draw(); });
      go.disabled = overlay.largest === null;
      go.setAttribute("aria-label", `Go to the slice with most of ${overlay.label}`);
      go.addEventListener("click", () => {
        overlay.on = check.checked = true;
        this.index.axial = overlay.largest;
        this.point = null;
        this.choosePlane("axial");
      });
      return row;
    }));
    this.root.querySelector("[data-part=no-overlays]").hidden = this.overlays.length > 0;
  }
}

for (const root of document.querySelectorAll("[data-viewer]")) {
  const viewer = new Viewer(root);
  root.viewer = viewer; // for tests and for whoever is curious
  viewer.glimpse();
  viewer.open();
}
