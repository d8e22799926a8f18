import DataTable from "datatables";

const numbers = document.getElementById("numbers").textContent;
const { charts, datasets } = JSON.parse(numbers);
const picker = document.getElementById("place");

for (const [id, chart] of Object.entries(charts)) {
  vegaEmbed(`#${id}`, { ...chart, datasets }, { renderer: "svg", actions: false, logLevel: 1 });
}
for (const table of document.querySelectorAll("table.data")) {
  new DataTable(table, { paging: false, info: false, order: [], autoWidth: false, searching: table.rows.length > 9 });
}
const show = () => {
  for (const part of document.querySelectorAll("[data-place]")) {
    part.hidden = part.dataset.place !== picker.value;
    if (!part.hidden) document.getElementById("drawn").classList.toggle("plain", !part.dataset.weight);
  }
};
picker.addEventListener("input", show);
show();
for (const link of document.querySelectorAll("a[data-pick]")) {
  link.addEventListener("click", () => {
    picker.value = link.dataset.pick;
    picker.dispatchEvent(new Event("input"));
  });
}
document.getElementById("save").href = URL.createObjectURL(new Blob([numbers], { type: "application/json" }));
