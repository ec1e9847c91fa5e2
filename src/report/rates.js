// Shows each token's numbers at the chosen time, and colours the tokens by the chosen quantity.
const slider = document.getElementById("t");
const choice = document.getElementById("colour");
const tokens = [...document.querySelectorAll("[data-r]")];
const entropies = tokens.map((token) => Number(token.dataset.h));
const highest = entropies.reduce((a, b) => Math.max(a, b), 0);
const lowest = entropies.reduce((a, b) => Math.min(a, b), highest);
const tellRates = () => {
  const t = Number(slider.value);
  document.getElementById("t-shown").textContent = t.toFixed(2);
  const byRate = choice.value === "rate";
  const from = choice.value === "lowest" ? lowest : 0;
  const to = byRate ? 1 : highest;
  document.getElementById("low").textContent = byRate ? "0 %" : `${from ? from.toFixed(2) : 0} nats`;
  document.getElementById("high").textContent = byRate ? "100 % masked" : `${to.toFixed(2)} nats`;
  for (const token of tokens) {
    const r = Number(token.dataset.r);
    const rate = -Math.expm1(r * Math.log1p(-t));
    const value = byRate ? rate : Number(token.dataset.h);
    const share = to > from ? Math.min(1, Math.max(0, (value - from) / (to - from))) : 0;
    token.style.setProperty("--share", share.toFixed(3));
    const part = token.dataset.part ? `, token ${token.dataset.part}` : "";
    token.dataset.tip = `${JSON.stringify(token.dataset.token)}${part}\nentropy ${token.dataset.h} nats\nr ${token.dataset.r}\n` +
      `masked at t = ${t.toFixed(2)}: ${(100 * rate).toFixed(1)} %\nmasked over all t: ${(100 * r / (1 + r)).toFixed(1)} %`;
  }
};
slider.addEventListener("input", tellRates);
choice.addEventListener("input", tellRates);
tellRates();
