// Pan and zoom of an SVG scene: wheel, drag, pinch, and fitting a box. Moves one group element.
"use strict";

class Viewport {
  constructor(svg, scene, onZoom) {
    Object.assign(this, { svg, scene, onZoom, x: 0, y: 0, k: 1, pointers: new Map(), moved: 0, waiting: false });
    svg.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
    svg.addEventListener("pointerdown", (event) => this.down(event));
    svg.addEventListener("pointermove", (event) => this.move(event));
    for (const kind of ["pointerup", "pointercancel"]) svg.addEventListener(kind, (event) => this.up(event));
    // A drag that ends on a node is no click on it.
    svg.addEventListener("click", (event) => { if (this.moved > 4) event.stopPropagation(); }, { capture: true });
  }

  point(event) {
    const box = this.svg.getBoundingClientRect();
    return { x: event.clientX - box.left, y: event.clientY - box.top };
  }

  wheel(event) {
    event.preventDefault();
    const lines = event.deltaMode === 1 ? 30 : 1;
    const at = this.point(event);
    this.zoom(Math.exp(-event.deltaY * lines * (event.ctrlKey ? 0.01 : 0.0018)), at.x, at.y);
  }

  down(event) {
    if (event.button !== 0) return;
    if (!this.pointers.size) this.moved = 0;
    this.pointers.set(event.pointerId, this.point(event));
  }

  move(event) {
    const last = this.pointers.get(event.pointerId);
    if (!last) return;
    const now = this.point(event);
    this.moved += Math.abs(now.x - last.x) + Math.abs(now.y - last.y);
    if (this.moved > 4 && !this.svg.hasPointerCapture(event.pointerId)) {
      this.svg.setPointerCapture(event.pointerId);
      this.svg.classList.add("drag");
    }
    const other = [...this.pointers].find(([id]) => id !== event.pointerId)?.[1];
    if (other) {
      const distance = (p) => Math.hypot(p.x - other.x, p.y - other.y) || 1;
      this.zoom(distance(now) / distance(last), (now.x + other.x) / 2, (now.y + other.y) / 2);
    } else {
      this.x += now.x - last.x;
      this.y += now.y - last.y;
      this.apply();
    }
    this.pointers.set(event.pointerId, now);
  }

  up(event) {
    this.pointers.delete(event.pointerId);
    if (!this.pointers.size) this.svg.classList.remove("drag");
  }

  zoom(factor, x = this.svg.clientWidth / 2, y = this.svg.clientHeight / 2) {
    const k = Math.min(4, Math.max(0.02, this.k * factor));
    this.x = x - ((x - this.x) * k) / this.k;
    this.y = y - ((y - this.y) * k) / this.k;
    this.k = k;
    this.apply();
  }

  // Show a box of the scene, as large as it fits but not above `most`.
  fit(box, most = 1.25, top = 56, margin = 20) {
    const wide = this.svg.clientWidth - 2 * margin, high = this.svg.clientHeight - top - margin;
    this.k = Math.min(4, Math.max(0.02, Math.min(most, wide / box.width, high / box.height)));
    this.x = margin + (wide - box.width * this.k) / 2 - box.x * this.k;
    this.y = top + (high - box.height * this.k) / 2 - box.y * this.k;
    this.apply();
  }

  // Bring a box into view, readable, moving no more than needed.
  reveal(box) {
    const left = box.x * this.k + this.x, up = box.y * this.k + this.y;
    const inside = left >= 0 && up >= 50 && left + box.width * this.k <= this.svg.clientWidth && up + box.height * this.k <= this.svg.clientHeight;
    if (inside && this.k >= 0.5) return;
    this.k = Math.max(this.k, 0.8);
    this.x = this.svg.clientWidth / 2 - (box.x + box.width / 2) * this.k;
    this.y = this.svg.clientHeight / 2 - (box.y + box.height / 2) * this.k;
    this.apply();
  }

  apply() {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => {
      this.waiting = false;
      this.scene.setAttribute("transform", `translate(${this.x} ${this.y}) scale(${this.k})`);
      this.onZoom(this.k);
    });
  }
}
