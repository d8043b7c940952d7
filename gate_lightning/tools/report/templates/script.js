"use strict";
document.documentElement.classList.add("js");

// a slider's whole numbers are layers; halfway between two, both are seen
function show(figure, place) {
  const images = [...figure.querySelectorAll(".layers img")];
  const at = Math.min(place, images.length - 1);
  const low = Math.floor(at), mixed = at > low;
  images.forEach((image, number) => {
    image.style.opacity = number === low ? 1 : number === low + 1 && mixed ? 0.5 : 0;
  });
  const names = images.map((image) => image.dataset.layer);
  const text = mixed ? `${names[low]} + ${names[low + 1]}` : names[low];
  const input = figure.querySelector("input");
  input.value = at;
  input.setAttribute("aria-valuetext", text);
  figure.querySelector("output").textContent = text;
}
document.querySelectorAll(".example").forEach((figure) => {
  show(figure, 0);
  figure.querySelector("input").addEventListener("input", (event) => show(figure, Number(event.target.value)));
});
document.querySelectorAll(".together input").forEach((input) => {
  input.addEventListener("input", () => {
    const figures = input.closest("section").querySelectorAll(`.examples[data-group="${input.dataset.group}"] .example`);
    figures.forEach((figure) => show(figure, Number(input.value)));
    const first = figures[0].querySelector("output").textContent;
    input.setAttribute("aria-valuetext", first);
    input.parentElement.querySelector("output").textContent = first;
  });
});

// tables are sorted by a click on a title: numbers the largest first, names from A to Z; missing ones last
document.querySelectorAll("table.sortable th button").forEach((button) => {
  button.addEventListener("click", () => {
    const head = button.closest("th"), table = button.closest("table"), body = table.tBodies[0];
    const column = head.cellIndex;
    const value = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
    const rows = [...body.rows];
    const numeric = rows.some((row) => value(row) !== "") && rows.every((row) => value(row) === "" || !Number.isNaN(Number(value(row))));
    const before = head.getAttribute("aria-sort");
    const ascending = before ? before !== "ascending" : !numeric;
    const order = (a, b) => (numeric ? Number(a) - Number(b) : a.localeCompare(b, undefined, { numeric: true }));
    rows.sort((one, two) => {
      const a = value(one), b = value(two);
      if (a === "" || b === "") return (a === "") - (b === "");
      return ascending ? order(a, b) : order(b, a);
    });
    table.querySelectorAll("th").forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
    body.append(...rows);
  });
});

// values at the step under the pointer; arrow keys move by a point of the longest curve
document.querySelectorAll(".chart").forEach((figure) => {
  const svg = figure.querySelector("svg"), cursor = svg.querySelector(".cursor"), output = figure.querySelector("output");
  const data = JSON.parse(svg.dataset.curves);
  const steps = data.lines.reduce((a, b) => (b.x.length > a.x.length ? b : a)).x;
  let at = steps.length - 1;
  const nearest = (xs, step) => xs.reduce((best, x, i) => (Math.abs(x - step) < Math.abs(xs[best] - step) ? i : best), 0);
  const tell = () => {
    const step = steps[at];
    const x = data.left + ((data.right - data.left) * (step - data.first)) / (data.last - data.first);
    cursor.setAttribute("x1", x);
    cursor.setAttribute("x2", x);
    cursor.removeAttribute("visibility");
    const values = data.lines.map((line) => {
      const i = nearest(line.x, step);
      return `${line.name} ${line.y[i]}${data.unit && " " + data.unit}${line.x[i] === step ? "" : ` (step ${line.x[i]})`}`;
    });
    output.textContent = `step ${step}: ${values.join(" · ")}`;
  };
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
    at = nearest(steps, data.first + ((data.last - data.first) * (x - data.left)) / (data.right - data.left));
    tell();
  });
  svg.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
    if (move === undefined) return;
    event.preventDefault();
    at = Math.max(0, Math.min(steps.length - 1, at + move));
    tell();
  });
});
