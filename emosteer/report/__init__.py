"""`report.html`: a sweep's answer, figures, replies and making, in one file that opens from a disk without a network.

Its numbers are those of `emosteer.tables`, and nothing here computes one again. `page` puts the page together from the template
`page.html.j2`, the style `page.css` and the script `page.js`; `answers` and `making` say in words what the first and the last section
show, `predicted`, `agreed` and `by_turn` what other tables than the results come to; `grid`, `locus` and `replies` pack numbers and
texts that the script draws.
"""
