// Shows what a point or a token has to tell where the pointer rests on it, or a finger touches it. In a chart the nearest
// point tells.
const tip = document.getElementById("tip");
for (const title of document.querySelectorAll("svg title")) {
  title.parentNode.dataset.tip = title.textContent;
  title.remove();
}
const REACH = 40;
let lit = null;
const nearest = (svg, event) => {
  let [found, distance] = [null, REACH];
  for (const point of svg.querySelectorAll("circle")) {
    const box = point.getBoundingClientRect();
    const away = Math.hypot(box.x + box.width / 2 - event.clientX, box.y + box.height / 2 - event.clientY);
    if (away < distance) [found, distance] = [point, away];
  }
  return found;
};
const tell = (event) => {
  const target = event.target.closest ? event.target : null;
  const svg = target && target.closest("svg");
  const told = target && (target.closest("[data-tip]") || (svg && nearest(svg, event)));
  if (lit) lit.classList.remove("lit");
  lit = told;
  tip.style.display = told ? "block" : "none";
  if (!told) return;
  told.classList.add("lit");
  tip.textContent = told.dataset.tip;
  const { width, height } = tip.getBoundingClientRect();
  tip.style.left = Math.max(4, Math.min(event.clientX + 12, innerWidth - width - 4)) + "px";
  tip.style.top = (event.clientY + 18 + height > innerHeight ? event.clientY - height - 8 : event.clientY + 18) + "px";
};
document.addEventListener("pointermove", tell);
document.addEventListener("pointerdown", tell);
