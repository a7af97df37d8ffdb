"""`report.html`: a sweep's answer, figures, replies and making, in one file that opens from a disk without a network.

Its numbers are those of `emosteer.tables`, and nothing here computes one again. `page` puts the page together from the template
`page.html.j2`, the style `page.css` and the script `page.js`; `answers` and `making` say in words what the first and the last section
show, `grid`, `locus` and `replies` pack the numbers and texts that the script draws.
"""
