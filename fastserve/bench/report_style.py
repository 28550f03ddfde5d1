"""How all HTML reports look: light, dark and on paper. Each adds what it alone has."""

from __future__ import annotations

STYLE = """
:root{color-scheme:light dark;--back:#fff;--text:#1b1f24;--soft:#59636e;--grid:#d9dee3;--frame:#8c959f;
--bar:#cfe3f3;--c0:#0072b2;--c1:#c4501b;--c2:#00795a;--c3:#a8437f;--c4:#8a6100;--c5:#3f6d8c}
@media(prefers-color-scheme:dark){:root{--back:#14171a;--text:#e6e9ec;--soft:#a2abb4;--grid:#2f363d;
--frame:#6a737d;--bar:#1e3a52;--c0:#5ab6f0;--c1:#ff9a5c;--c2:#36c89b;--c3:#eba3cf;--c4:#e3bd4f;--c5:#9fc4dc}}
@media print{:root{--back:#fff;--text:#000;--soft:#333;--grid:#ccc;--frame:#666;--bar:#ddd;--c0:#0072b2;
--c1:#c4501b;--c2:#00795a;--c3:#a8437f;--c4:#8a6100;--c5:#3f6d8c}body{max-width:none;font-size:10pt}}
body{background:var(--back);color:var(--text);font:15px/1.45 system-ui,sans-serif;max-width:1180px;
margin:0 auto;padding:1rem}
h2{border-top:1px solid var(--grid);padding-top:1rem;margin-top:2rem}
figure{margin:0;break-inside:avoid}figcaption{color:var(--soft);font-size:.85rem}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:.85rem}.wide{overflow-x:auto}
th,td{padding:.2rem .55rem;text-align:right;border-bottom:1px solid var(--grid);white-space:nowrap}
th{font-weight:600;vertical-align:bottom}
.chart{width:100%;height:auto}.chart text{fill:var(--text);font:11px system-ui,sans-serif}
.chart .axis{font-weight:600}.grid{stroke:var(--grid);fill:none}.frame{stroke:var(--frame);fill:none}
.line{fill:none;stroke-width:1.8;stroke-linejoin:round}
.line.c0{stroke:var(--c0)}.line.c1{stroke:var(--c1)}.line.c2{stroke:var(--c2)}.line.c3{stroke:var(--c3)}
.line.c4{stroke:var(--c4)}.line.c5{stroke:var(--c5)}.mark.c0{fill:var(--c0)}.mark.c1{fill:var(--c1)}
.mark.c2{fill:var(--c2)}.mark.c3{fill:var(--c3)}.mark.c4{fill:var(--c4)}.mark.c5{fill:var(--c5)}
"""
