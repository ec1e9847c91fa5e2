// Shows what a point or a token has to tell where the pointer rests on it, or a finger touches it.
const tip = document.getElementById("tip");
for (const title of document.querySelectorAll("svg title")) {
  title.parentNode.dataset.tip = title.textContent;
  title.remove();
}
const tell = (event) => {
  const told = event.target.closest ? event.target.closest("[data-tip]") : null;
  tip.style.display = told ? "block" : "none";
  if (!told) return;
  tip.textContent = told.dataset.tip;
  const { width, height } = tip.getBoundingClientRect();
  tip.style.left = Math.max(4, Math.min(event.clientX + 12, innerWidth - width - 4)) + "px";
  tip.style.top = (event.clientY + 18 + height > innerHeight ? event.clientY - height - 8 : event.clientY + 18) + "px";
};
document.addEventListener("pointerover", tell);
document.addEventListener("pointerdown", tell);
