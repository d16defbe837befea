"""The look of a report: one style sheet, light, dark and printed. Colours of curves: Okabe and Ito (2008), safe for
colour-blind eyes, darker in light and lighter in dark; form (dots, dashes, crosses, words) always tells them apart too.
"""

STYLE = """
:root {
  color-scheme: light dark;
  --page: #f6f7f4; --card: #ffffff; --ink: #18201c; --muted: #5a665f; --line: #dfe4de; --soft: #eef1ec;
  --accent: #17694c; --accent-soft: #e2f0e9; --tile: #17694c; --on-tile: #ffffff;
    --on-tile-soft: #d3eadf;
  --bad: #a8430a; --bad-soft: #fbebe1;
  --a: #0072b2; --b: #d55e00; --c: #8a4a78; --other: #b9c2bb;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #0f1412; --card: #171d1a; --ink: #e6ebe7; --muted: #9aa79f; --line: #2a332e; --soft: #1f2723;
    --accent: #6fcfa6; --accent-soft: #1b3329; --tile: #1d4f3b; --on-tile: #effaf4;
    --on-tile-soft: #b9d8c9;
    --bad: #f2a56d; --bad-soft: #3a2517;
    --a: #56b4e9; --b: #f0913f; --c: #d99bc4; --other: #4a564f;
  }
}
* { box-sizing: border-box; }
html { scroll-behavior: smooth; -webkit-text-size-adjust: 100%; }
body {
  margin: 0; background: var(--page); color: var(--ink); font-size: 15px; line-height: 1.6;
  font-family: Pretendard, "Apple SD Gothic Neo", "Malgun Gothic", "Noto Sans KR", "Noto Sans CJK KR", system-ui,
    sans-serif;
  word-break: keep-all; overflow-wrap: anywhere; font-variant-numeric: tabular-nums;
}
main, header.top, footer { max-width: 1160px; margin: 0 auto; padding: 0 24px; }
a { color: var(--accent); }
code, pre { font-family: "D2Coding", ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; font-size: 13px; }
.en { color: var(--muted); font-weight: 400; }
.muted { color: var(--muted); }

header.top { padding-top: 40px; }
.brand { display: flex; gap: 8px; align-items: baseline; color: var(--muted); font-size: 14px; margin: 0; }
.brand b { color: var(--accent); font-size: 16px; }
h1 { font-size: 34px; line-height: 1.25; margin: 10px 0 10px; letter-spacing: -.02em; }
h1 .arrow { color: var(--muted); font-weight: 400; padding: 0 .15em; }
.lead { font-size: 17px; margin: 0; text-wrap: pretty; }
.lead span { display: block; }
.lead + .lead { margin-top: 4px; }
.lead.en { font-size: 14.5px; }
.meta { display: flex; flex-wrap: wrap; gap: 6px 18px; margin: 16px 0 0; padding: 0; list-style: none;
  color: var(--muted); font-size: 13.5px; }
nav { margin: 26px 0 0; border-top: 1px solid var(--line); border-bottom: 1px solid var(--line); }
nav ul { display: flex; flex-wrap: wrap; gap: 4px 22px; list-style: none; margin: 0; padding: 9px 0; font-size: 14px; }
nav a { text-decoration: none; color: var(--ink); }
nav a:hover { color: var(--accent); text-decoration: underline; }

.big { display: grid; grid-template-columns: repeat(auto-fit, minmax(164px, 1fr)); margin: 24px 0 0; gap: 12px; }
.big > div { padding: 15px 18px 14px; border: 1px solid var(--line); border-radius: 12px; background: var(--card); }
.big .name { display: block; font-size: 14px; line-height: 1.4; font-weight: 600; }
.big .name .en { display: block; font-size: 12.5px; }
.big .value { display: block; font-size: 29px; line-height: 1.25; font-weight: 700; letter-spacing: -.02em;
  margin-top: 6px; white-space: nowrap; }
.big .value small { font-size: 14px; font-weight: 500; color: var(--muted); letter-spacing: 0; margin-left: 3px; }
.big .from { display: block; font-size: 13px; color: var(--muted); min-height: 1.6em; }
.big .first { background: var(--tile); border-color: var(--tile); color: var(--on-tile); }
.big .first :is(.en, .from, small) { color: var(--on-tile-soft); }

section { padding-top: 44px; }
h2 { font-size: 21px; margin: 0 0 14px; letter-spacing: -.01em; }
h2 .en { font-size: 15px; margin-left: 4px; }
h3 { font-size: 15.5px; margin: 0 0 10px; }
h3 .en { font-size: 13.5px; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 18px 20px; margin: 0; }
.grid { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 14px; align-items: start; }
.grid.even { align-items: stretch; }
.grid.three { grid-template-columns: repeat(3, minmax(0, 1fr)); }
.of-run + .of-run { margin-top: 26px; }
.columns { columns: 2; column-gap: 14px; }
.columns > * { break-inside: avoid; margin-bottom: 14px; }
.stack > * + * { margin-top: 14px; }
.empty { color: var(--muted); margin: 0; padding: 12px 0; }
.notes { border-color: var(--bad); background: var(--bad-soft); margin-top: 20px; }
.notes ul { margin: 4px 0 0; padding-left: 20px; }

.chart { container-type: inline-size; padding: 15px 18px 10px; display: flex; flex-direction: column; }
figcaption { display: flex; flex-wrap: wrap; gap: 0 8px; align-items: baseline; }
figcaption .sub { color: var(--muted); font-size: 13px; }
.legend { display: flex; flex-wrap: wrap; gap: 0 16px; list-style: none; margin: 2px 0 0; padding: 0; font-size: 13px;
  color: var(--muted); }
.legend li { display: flex; align-items: center; gap: 6px; }
.key { display: inline-block; width: 18px; height: 0; border-top: 2.5px solid; }
.key.line-a { color: var(--a); } .key.line-b { color: var(--b); } .key.line-c { color: var(--c); }
.key.line-r1 { color: var(--a); } .key.line-r2 { color: var(--b); border-top-style: dashed; }
.key.line-r3 { color: var(--c); border-top-style: dotted; } .key.line-r4 { color: var(--accent); }
.key.line-r5 { color: var(--muted); border-top-style: double; border-top-width: 4px; }
.meta .key, th .key { vertical-align: middle; }
.legend.whole { margin: 0 0 12px; font-size: 14px; }
.better { color: var(--accent); white-space: nowrap; }
.key.dots::after { content: ""; display: block; width: 7px; height: 7px; border-radius: 50%; background: currentColor;
  margin: -4.8px 0 0 5.5px; }
.key.resume { border-top: 1.5px dashed var(--muted); }
.key.skip { border: 0; height: auto; width: auto; color: var(--bad); }
.key.skip::before { content: "✕"; font-style: normal; font-size: 11px; }
svg { display: block; width: 100%; height: auto; margin-top: auto; padding-top: 8px; }
svg text { font-size: 11.5px; fill: var(--muted); font-family: inherit; }
svg .tick.y { text-anchor: end; }
svg .tick.x { text-anchor: middle; }
svg .end, svg .tick.x.end { text-anchor: end; }
svg .grid { stroke: var(--line); stroke-width: 1; display: inline; }
svg .axis { stroke: var(--muted); stroke-width: 1; }
svg .stroke { fill: none; stroke: currentColor; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
svg .area { fill: currentColor; opacity: .18; }
svg circle { fill: currentColor; stroke: var(--card); stroke-width: 1.2; }
svg .a { color: var(--a); } svg .b { color: var(--b); } svg .c { color: var(--c); }
svg .r1 { color: var(--a); } svg .r2 { color: var(--b); } svg .r3 { color: var(--c); }
svg .r4 { color: var(--accent); } svg .r5 { color: var(--muted); }
svg .r2 .stroke { stroke-dasharray: 7 3.5; } svg .r3 .stroke { stroke-dasharray: 2 3.5; }
svg .r4 .stroke { stroke-width: 3.2; opacity: .8; } svg .r5 .stroke { stroke-dasharray: 10 3 2 3; }
svg .resume { fill: none; stroke: var(--muted); stroke-width: 1.3; stroke-dasharray: 4 3; }
svg .skip { fill: none; stroke: var(--bad); stroke-width: 1.8; }
svg .band rect { fill: transparent; }
svg .band > :not(rect) { visibility: hidden; pointer-events: none; }
svg .band line { stroke: var(--muted); stroke-width: 1; opacity: .6; }
svg .band text { fill: var(--ink); font-weight: 600; }
svg .band:hover > * { visibility: visible; }
@container (max-width: 440px) { svg text { font-size: 14px; } }
@container (max-width: 328px) { svg text { font-size: 14.2px; } }
@container (min-width: 620px) { svg text { font-size: 9.5px; } }

.bars { display: grid; grid-template-columns: minmax(120px, 190px) 1fr; gap: 14px 18px; align-items: center; }
.bars .pair { display: grid; gap: 4px; }
.bar { display: grid; grid-template-columns: 1fr 74px; gap: 10px; align-items: center; font-size: 14px; }
.bar .track { background: var(--soft); border-radius: 5px; height: 14px; }
.bar .fill { display: block; height: 14px; border-radius: 5px; background: var(--other); min-width: 2px; }
.bar.after .fill { background: var(--accent); }
.bar.after b { color: var(--accent); }
.about { margin: 0 0 14px; }
.hint + dl { margin-top: 10px; }
.hint { color: var(--muted); font-size: 13px; margin: 12px 0 0; }
.share { display: flex; height: 16px; border-radius: 6px; overflow: hidden; background: var(--soft); gap: 2px; }
.share i { display: block; min-width: 3px; }
.share .kept, .dot.kept { background: var(--accent); } .share .dropped, .dot.dropped { background: var(--b); }
.share .rejected, .dot.rejected { background: var(--c); } .share .over, .dot.over { background: var(--other); }
.share + .legend { margin: 7px 0 6px; }
.legend .dot { margin-right: 0; }
.dot { display: inline-block; width: 9px; height: 9px; border-radius: 50%; margin-right: 7px; }

.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
th { font-weight: 500; color: var(--muted); font-size: 13px; text-align: left; border-bottom: 1px solid var(--line); }
th, td { padding: 6px 14px 6px 0; vertical-align: top; }
td { border-bottom: 1px solid var(--soft); }
tbody tr:last-child td { border-bottom: 0; }
th, td { overflow-wrap: break-word; }
th.n, td.n { text-align: right; padding: 6px 0 6px 14px; }
td.n { white-space: nowrap; }
dl { margin: 0; }
dl > div { display: grid; grid-template-columns: minmax(110px, 40%) 1fr; gap: 12px; padding: 5px 0;
  border-bottom: 1px solid var(--soft); font-size: 14px; }
dl > div:last-child { border-bottom: 0; }
dt { color: var(--muted); }
dd { margin: 0; min-width: 0; }
.figure { font-size: 27px; font-weight: 700; letter-spacing: -.02em; line-height: 1.3; margin: 0 0 10px; }
.figure small { font-size: 14px; font-weight: 400; color: var(--muted); letter-spacing: 0; }

details { margin-top: 14px; }
details.card:first-child { margin-top: 0; }
.chat details { margin-top: 0; }
summary { cursor: pointer; color: var(--accent); font-size: 14px; }
details.card > summary { color: var(--ink); font-weight: 600; font-size: 15px; }
details > :nth-child(2) { margin-top: 8px; }
pre { margin: 0; white-space: pre-wrap; line-height: 1.5; }

.chats { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 14px; }
.chat { display: flex; flex-direction: column; gap: 8px; padding: 16px; }
.chat header { display: flex; justify-content: space-between; align-items: center; gap: 8px; font-size: 13px;
  color: var(--muted); }
.bubble { border-radius: 14px; padding: 9px 14px; max-width: 90%; white-space: pre-wrap; unicode-bidi: isolate;
  width: fit-content; }
.bubble .who { display: block; font-size: 12px; color: var(--muted); margin-bottom: 1px; }
.bubble.user { align-self: flex-end; background: var(--soft); border-bottom-right-radius: 4px; }
.bubble.model { background: var(--accent-soft); border-bottom-left-radius: 4px; }
.bubble.earlier { background: var(--card); border: 1px solid var(--line); border-bottom-left-radius: 4px; }
.talk { display: flex; flex-direction: column; gap: 8px; max-width: 620px; }
.wrong .bubble.model { background: var(--bad-soft); }
.beside { font-size: 13.5px; color: var(--muted); white-space: pre-wrap; unicode-bidi: isolate; padding: 0 4px; }
.beside b { font-weight: 500; color: var(--ink); }
.chip { display: inline-block; border-radius: 99px; padding: 1px 10px; font-size: 13px; font-weight: 600;
  background: var(--soft); color: var(--ink); max-width: 100%; }
.chip.good { background: var(--accent-soft); color: var(--accent); }
.chip.bad { background: var(--bad-soft); color: var(--bad); }
.chips { display: flex; flex-wrap: wrap; gap: 6px; margin: 0 0 14px; }

.events { list-style: none; margin: 0; padding: 0; }
.events li { display: grid; grid-template-columns: 152px 190px 1fr; gap: 2px 16px; padding: 7px 0; font-size: 14px;
  border-bottom: 1px solid var(--soft); }
.events li:last-child { border-bottom: 0; }
.events time { color: var(--muted); font-size: 13px; white-space: nowrap; }
.events .where { color: var(--muted); font-size: 13px; }
.events .gap { display: block; color: var(--muted); text-align: center; }
footer { padding-top: 44px; padding-bottom: 40px; color: var(--muted); font-size: 13px; }

@media (max-width: 1080px) {
  .big { grid-template-columns: repeat(3, minmax(0, 1fr)); }
  .grid.three { grid-template-columns: repeat(2, minmax(0, 1fr)); }
}
@media (max-width: 860px) {
  .grid, .grid.three { grid-template-columns: minmax(0, 1fr); }
}
@media (max-width: 720px) {
  main, header.top, footer { padding-left: 16px; padding-right: 16px; }
  header.top { padding-top: 24px; }
  h1 { font-size: 26px; }
  .lead { font-size: 16px; }
  .chats { grid-template-columns: minmax(0, 1fr); }
  .columns { columns: 1; }
  .big { grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 8px; }
  .big > div { padding: 12px 14px; }
  .big .value { font-size: 23px; }
  .card { padding: 14px 15px; }
  .chart { padding: 13px 12px 8px; }
  .bars { grid-template-columns: minmax(0, 1fr); gap: 5px; }
  .bars .pair { margin-bottom: 10px; }
  .events li { grid-template-columns: minmax(0, 1fr); gap: 0; }
  section { padding-top: 34px; }
}
@media print {
  :root {
    color-scheme: light;
    --page: #ffffff; --card: #ffffff; --ink: #111111; --muted: #555555; --line: #cccccc; --soft: #eeeeee;
    --accent: #17694c; --accent-soft: #e2f0e9; --tile: #17694c; --on-tile: #ffffff;
    --on-tile-soft: #d3eadf; --bad: #a8430a; --bad-soft: #fbebe1;
    --a: #0072b2; --b: #d55e00; --c: #8a4a78; --other: #b9c2bb;
  }
  body { font-size: 12px; -webkit-print-color-adjust: exact; print-color-adjust: exact; }
  nav { display: none; }
  .grid, .grid.three { grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 8px; }
  .columns { columns: 1; }
  section { padding-top: 24px; }
  .scroll { overflow: visible; }
  table { font-size: 11px; }
  .card, .big > div, tr, .events li { break-inside: avoid; }
  details.card { break-inside: auto; }
  h2, h3 { break-after: avoid; }
  details::details-content { content-visibility: visible; height: auto; }
}
"""
