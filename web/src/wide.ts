// A picture wider than the window: only the part in view is drawn, so that its length has no limit.
// The axis stays at the left while the rest is scrolled.
import { h, size } from "./dom";

export interface View {
  pen: CanvasRenderingContext2D;
  from: number; // columns in view, `to` exclusive
  to: number;
  x: (column: number) => number; // the left edge of a column, in the canvas
}

export interface Wide {
  frame: HTMLElement;
  canvas: HTMLCanvasElement;
  draw: (columns: number, width: number, left: number, height: number, paint: (view: View) => void, axis: (pen: CanvasRenderingContext2D) => void) => void;
  column: (event: MouseEvent) => number; // -1 outside
  reveal: (column: number) => void;
}

export function wide(id: string): Wide {
  const canvas = h("canvas", { tabindex: 0, role: "img", id });
  const room = h("div", { class: "room" }, canvas);
  const frame = h("div", { class: "scroll wide" }, room);
  let columns = 0;
  let width = 1;
  let left = 0;
  let again = () => {};
  let waiting = false;
  frame.addEventListener("scroll", () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; again(); });
  });
  return {
    frame,
    canvas,
    draw(newColumns, newWidth, newLeft, height, paint, axis) {
      [columns, width, left] = [newColumns, newWidth, newLeft];
      room.style.width = `${left + columns * width + 2}px`;
      again = () => {
        const shown = Math.min(frame.clientWidth, left + columns * width + 2);
        const pen = size(canvas, shown, height);
        const offset = frame.scrollLeft;
        const from = Math.max(0, Math.floor(offset / width));
        const to = Math.min(columns, Math.ceil((offset + shown - left) / width));
        pen.save();
        pen.beginPath();
        pen.rect(left - 2, 0, shown - left + 2, height);
        pen.clip();
        paint({ pen, from, to, x: (column) => left + column * width - offset });
        pen.restore();
        axis(pen);
      };
      again();
    },
    column(event) {
      const x = event.clientX - canvas.getBoundingClientRect().left - left;
      const found = Math.floor((x + frame.scrollLeft) / width);
      return x >= 0 && found < columns ? found : -1;
    },
    reveal(column) {
      const x = column * width;
      const seen = frame.clientWidth - left;
      if (x < frame.scrollLeft) frame.scrollLeft = Math.max(0, x - width);
      else if (x + width > frame.scrollLeft + seen) frame.scrollLeft = x + 2 * width - seen;
    },
  };
}
