(() => {
  "use strict";
  const root = document.documentElement;
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const plots = [...document.querySelectorAll(".plot")];
  const chosen = {};
  const drawn = new Set();
  const ink = name => getComputedStyle(root).getPropertyValue("--" + name).trim();
  const still = { displayModeBar: false, responsive: true };

  // Figures name colours as "@name", so that they work in light, dark and print themes.
  const tint = value => Array.isArray(value) ? value.map(tint)
    : typeof value === "string" && value.startsWith("@") ? ink(value.slice(1)) : value;
  const themed = (value, key) => key === "color" ? tint(value)
    : Array.isArray(value) ? value.map(item => themed(item))
    : value && typeof value === "object"
      ? Object.fromEntries(Object.entries(value).map(([name, item]) => [name, themed(item, name)]))
      : value;

  const axis = (own, room) => ({
    gridcolor: ink("grid"), linecolor: ink("rule"), zerolinecolor: ink("rule"), automargin: true, ...own,
    title: own && own.title ? { text: own.title, font: { size: 12 }, standoff: room } : undefined,
    tickfont: { size: 11 },
  });

  function draw(plot, width) {
    const { data, layout, choices } = figures[plot.dataset.chart];
    const traces = themed((choices || {})[chosen[plot.dataset.chart]] || data);
    const narrow = (width || plot.clientWidth) < 520;
    const labelled = narrow && traces.some(trace => trace.mode === "markers+text");
    if (labelled) traces.forEach(trace => { trace.mode = "markers"; });
    const legend = layout.showlegend || labelled;
    const styled = themed(layout);
    Plotly.react(plot, traces, {
      ...styled,
      width, autosize: !width,
      xaxis: axis(styled.xaxis, 8), yaxis: axis(styled.yaxis, 12),
      showlegend: Boolean(legend), legend: { orientation: "h", x: 0, y: 1, yanchor: "bottom", font: { size: 11 } },
      margin: { l: 10, r: 12, t: legend ? 34 : 20, b: 10 },
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: getComputedStyle(document.body).fontFamily, color: ink("ink"), size: 12 },
      hoverlabel: { bgcolor: ink("card"), bordercolor: ink("rule"), font: { color: ink("ink") } },
      hovermode: "closest", dragmode: false,
    }, still);
    drawn.add(plot);
  }

  const observer = new IntersectionObserver(entries => {
    for (const entry of entries) {
      if (entry.isIntersecting && !drawn.has(entry.target)) draw(entry.target);
    }
  }, { rootMargin: "300px" });
  plots.forEach(plot => observer.observe(plot));

  for (const select of document.querySelectorAll("select[data-for]")) {
    select.addEventListener("change", () => {
      chosen[select.dataset.for] = select.value;
      draw(plots.find(plot => plot.dataset.chart === select.dataset.for));
    });
  }

  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => drawn.forEach(plot => draw(plot)));

  let closed = [];
  addEventListener("beforeprint", () => {
    root.dataset.print = "";
    closed = [...document.querySelectorAll("details:not([open])")];
    closed.forEach(details => { details.open = true; });
    plots.forEach(plot => draw(plot, 680));
  });
  addEventListener("afterprint", () => {
    delete root.dataset.print;
    drawn.forEach(plot => draw(plot));
    closed.forEach(details => { details.open = false; });
  });
})();
