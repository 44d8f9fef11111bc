"""Every number that decides whether a watch speaks, tuned on simulated years: see docs/monitoring.md.

`python -m benchmarks.drift` shows what a change of them does to false alarms and to the time until a shift is found.
"""

from datetime import timedelta

# A stream's reference: so many analysed studies, or those of so many days if they are fewer.
REFERENCE_STUDIES, REFERENCE_PERIOD = 500, timedelta(days=60)

WINDOW = timedelta(days=28)
RECENT = timedelta(days=7)  # a chart's crossing counts for this long
FEWEST = 150  # studies that a distribution or a rate needs, in the reference and now
LOOK_BACK_STUDIES = 600  # `assess` should be given as many, if the site has had them since the reference

# Distributions: an effect of this size, and a q (Benjamini-Hochberg) below that.
KS_WARN, KS_ALARM = 0.15, 0.25
PSI_WARN, PSI_ALARM = 0.10, 0.25
Q = 0.01

# Charts from study to study, on normal scores.
EWMA_LAMBDA, EWMA_LIMIT = 0.2, 5.0  # standard deviations of the chart

# The rate of positive results.
RATE_LIMIT, RATE_DAYS = 3.0, 7  # score test in standard deviations, on as many days running
CUSUM_ODDS, CUSUM_LIMIT = 2.0, 8.0  # the odds ratio that is looked for, and the log-likelihood ratio that is enough

REFUSALS_TAIL, REFUSALS_FEWEST = 3e-4, 3  # chance of so many in RECENT by the reference's rate; and at least so many
TURNAROUND_RATIO, TURNAROUND_FEWEST = 2.0, 60  # of the 95th percentiles; studies that it is taken from
TURNAROUND_LEAST_S = 1.0
# A queue of seconds doubles if two series come at once. Nobody waits before it takes twice this.
QUEUE_LEAST_S = 60.0

# Beside the shadow model. For small differences a PSI is 8 ln 2 times the divergence in bits: these are PSI 0.10, 0.25.
JS_WARN, JS_ALARM = 0.018, 0.045

# Shares of the window that failed, were tried again or not delivered: what a site can bear, not what is usual here.
TROUBLE_WARN, TROUBLE_ALARM = 0.01, 0.05
DELIVERY_AGE_S = 3600.0  # a destination that is away for a restart has the result by then

# Of one fact so many new values have an alarm each. A sender that makes up kernels must neither fill a page nor end and
# raise alarms at each look: more are one alarm, which names the commonest.
NEW_VALUES_SHOWN, NEW_VALUES_NAMED = 10, 3
