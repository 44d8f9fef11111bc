"""How good a model is: reads predictions with known labels, and writes metrics, plots and a page.

`predictions` reads files, `metrics` and `intervals` compute, `assessment` puts the numbers together, `comparison`
compares a second model with the first, `plots` and `page` draw. scikit-learn and matplotlib are the optional extra
`evaluate`. Nothing here imports them before they are used, and `prevalence` needs neither them nor numpy.
"""
