"""Performs the steps of one worklist, from their claim to what the worklist is told in the end.

The images of a step become series like all others: closed, analysed and reported by the same rules. The performer only
fetches them, waits, and tells. All that it knows is in the index, and each of its moves may be repeated. So it may be
killed at any moment, and another host that leads then goes on.
"""

import threading
import time
from collections.abc import Callable

import structlog
from pydicom.uid import generate_uid
from sqlalchemy import Connection

from config.gateways.worklist import WorklistRules
from config.reasons import Refusal
from dicom_node import heartbeat
from dicom_node.gateways.worklist import contents
from dicom_node.gateways.worklist.contents import Workitem
from dicom_node.gateways.worklist.interface import Answer, Said, Worklist
from dicom_node.performer.ending import Ending, summed_up
from dicom_node.performer.inputs import AWAY, Fetch, Missing, fetch_each, missing_of
from storage import step_outcomes, workitems, worklists_away
from storage.database import Database
from storage.errors import IllegalMove
from storage.workitems import Step, StepState

log = structlog.get_logger()

LEASE_S = 120.0
LOOK_EVERY_S = 2.0
"""Between two looks at whether the series of a step are analysed and their results delivered."""
FIRST_WAIT_S, LONGEST_WAIT_S, MOST_TRIES = 5.0, 1800.0, 12
WHILE_AWAY_S = 30.0
"""Between two tries to fetch from a PACS that is away."""
SUBSCRIBE_EVERY_S = 3600.0
FUTILE = (Answer.UNMET, Answer.REFUSED, Answer.CONFLICT)
MOVES_AT_ONCE = 200
"""Then the worklist is asked for new steps."""


class Performer:
    """See the module. fetch: how images come. ending: what a step's end says. clock: Unix seconds.

    subscribe: asks the worklist for events; None if none are wanted.
    """

    def __init__(
        self,
        rules: WorklistRules,
        worklist: Worklist,
        database: Database,
        fetch: Fetch,
        ending: Ending,
        stop: threading.Event,
        clock: Callable[[], float] = time.time,
        subscribe: Callable[[], Said] | None = None,
    ) -> None:
        self._rules, self._worklist, self._database = rules, worklist, database
        self._fetch, self._ending, self._stop, self._clock = fetch, ending, stop, clock
        self._subscribe = subscribe
        self._has_started = False
        self._is_away: bool | None = None
        self._next_query_at = self._silent_until = self._next_subscription_at = 0.0
        self._moves = {
            StepState.CLAIMING: self._claim_again,
            StepState.CLAIMED: self._read,
            StepState.FETCHING: self._fetch_all,
            StepState.ANALYSING: self._look,
            StepState.ENDING: self._tell,
        }

    def hurry(self) -> None:
        """Ask for new steps at the next opportunity: the worklist says that there are some."""
        self._next_query_at = 0.0

    def step(self) -> None:
        """Go on with every step that is due, and claim new ones. Steps that the worklist must hear of wait while it is
        away."""
        if self._clock() < self._silent_until:
            return
        if not self._has_started:
            self._start()
        try:
            self._subscribe_again()
            self._go_on()
            if self._clock() >= self._next_query_at:
                self._next_query_at = self._clock() + self._rules.poll_s
                self._claim_new()
                self._go_on()
                self._note_answer()
        except AWAY as error:
            self._silent_until = self._clock() + min(self._rules.poll_s, FIRST_WAIT_S)
            log.warning("the worklist is away", worklist=self._rules.name, detail=str(error))
            self._note_away(str(error))

    def _note_away(self, error: str) -> None:
        if self._is_away is not True:
            with self._database.transaction() as tx:
                worklists_away.note_away(tx, self._rules.name, self._clock(), error)
            self._is_away = True

    def _note_answer(self) -> None:
        if self._is_away is not False:
            with self._database.transaction() as tx:
                worklists_away.note_back(tx, self._rules.name)
            self._is_away = False

    def _start(self) -> None:
        with self._database.transaction() as tx:
            workitems.take_up_again(tx, self._rules.name, self._clock())
        self._has_started = True

    def _subscribe_again(self) -> None:
        """A worklist may have forgotten who subscribed. If it sends no events, steps are found by asking."""
        if self._subscribe is None or self._clock() < self._next_subscription_at:
            return
        said = self._subscribe()
        self._next_subscription_at = self._clock() + SUBSCRIBE_EVERY_S
        if said.answer is not Answer.DONE:
            log.warning("the worklist sends no events", worklist=self._rules.name, detail=said.text)

    def _go_on(self) -> None:
        for _ in range(MOVES_AT_ONCE):
            step = None if self._stop.is_set() else self._take()
            if step is None:
                return
            try:
                with heartbeat.kept(self._database, self._renewing(step.id), LEASE_S, step=step.id):
                    self._moves[step.state](step)
            except IllegalMove:
                log.info("another host went on with a step", step=step.id)
            except AWAY as error:
                self._wait(step, FIRST_WAIT_S, str(error))
                raise

    def _take(self) -> Step | None:
        with self._database.transaction() as tx:
            return workitems.take(tx, self._rules.name, self._clock(), LEASE_S)

    def _renewing(self, step_id: int) -> Callable[[Connection, float], bool]:
        return lambda tx, _now: workitems.postpone(tx, step_id, self._clock() + LEASE_S)

    def _later(self, step: Step, error: str, most_tries: int | None = None) -> None:
        """Try again, after a wait that grows; after so many tries it is lost."""
        if most_tries is not None and step.tries + 1 >= most_tries:
            self._advance(step, StepState.LOST, error=error)
            return
        self._wait(step, min(FIRST_WAIT_S * 2.0 ** min(step.tries, 20), LONGEST_WAIT_S), error, in_vain=True)

    def _wait(self, step: Step, wait_s: float, error: str, *, in_vain: bool = False) -> None:
        with self._database.transaction() as tx:
            workitems.postpone(tx, step.id, self._clock() + wait_s, in_vain=in_vain, error=error)

    def _advance(self, step: Step, to: StepState, **values: object) -> None:
        with self._database.transaction() as tx:
            workitems.advance(tx, step, to, self._clock(), **values)
        log.info("step of the worklist", worklist=self._rules.name, step=step.id, state=str(to), **values)

    # Claiming

    def _claim_new(self) -> None:
        with self._database.read() as tx:
            room = self._rules.claims - workitems.count_open(tx, self._rules.name)
        if room < 1:
            return
        found = self._worklist.scheduled(limit=10 * self._rules.claims)
        with self._database.read() as tx:
            mine = workitems.known(tx, self._rules.name, found)
        for uid in found:
            if uid in mine or self._stop.is_set():
                continue
            room -= self._claim(uid)
            if room < 1:
                return

    def _claim(self, uid: str) -> bool:
        """Claim one step; False if somebody else has it."""
        step = self._begin(uid)
        if step is None:
            return False
        try:
            said = self._worklist.claim(uid, step.transaction_uid)
        except AWAY as error:
            self._wait(step, FIRST_WAIT_S, str(error))
            raise
        return self._claimed(step, said)

    def _begin(self, uid: str) -> Step | None:
        """The Transaction UID is in the index before the worklist hears of it."""
        now = self._clock()
        with self._database.transaction() as tx:
            step_id = workitems.begin(tx, self._rules.name, uid, generate_uid(), now, now + LEASE_S)
            return None if step_id is None else workitems.get(tx, step_id)

    def _claimed(self, step: Step, said: Said) -> bool:
        if said.answer is Answer.DONE:
            self._advance(step, StepState.CLAIMED, claimed_at=self._clock())
        elif said.answer in (Answer.LATER, Answer.REFUSED, Answer.UNMET):
            self._later(step, said.text, MOST_TRIES)
        else:
            self._advance(step, StepState.TAKEN, error=said.text)
        return said.answer is Answer.DONE

    def _claim_again(self, step: Step) -> None:
        """A claim whose answer is not known: the state tells whether anybody has the step, and our Transaction UID
        whether we have."""
        found = self._worklist.read(step.workitem_uid)
        if found is not None and found.state == contents.SCHEDULED:
            if step.cancel_reason is not None:
                self._advance(step, StepState.LOST, error="cancelled before it was claimed")
                return
            said = self._worklist.claim(step.workitem_uid, step.transaction_uid)
            if said.answer in (Answer.DONE, Answer.LATER, Answer.REFUSED):
                self._claimed(step, said)
                return
        elif found is None or found.state != contents.IN_PROGRESS:
            self._advance(step, StepState.TAKEN, error="it is no longer scheduled")
            return
        self._claimed(step, self._progress(step, 0, "Claimed."))

    def _progress(self, step: Step, percent: int, text: str) -> Said:
        return self._worklist.change(step.workitem_uid, step.transaction_uid, contents.progress(percent, text))

    # Input

    def _read(self, step: Step) -> None:
        """Which images the step is about."""
        found = self._still_ours(step)
        if found is None:
            return
        with self._database.transaction() as tx:
            if found.problem:
                workitems.decide(tx, step, self._clock(), (), Refusal("", found.problem))
            else:
                workitems.set_input(tx, step, found.inputs, self._clock())

    def _still_ours(self, step: Step) -> Workitem | None:
        found = self._worklist.read(step.workitem_uid)
        if found is None or found.state != contents.IN_PROGRESS:
            state = "unknown" if found is None else f"{found.state or 'without a state'}"
            self._advance(step, StepState.LOST, error=f"at the worklist it is {state}")
            return None
        return found

    def _fetch_all(self, step: Step) -> None:
        """Fetch what is not here; after some tries in vain go on without."""
        if self._is_cancelled(step):
            return
        wanted = self._missing(step)
        if wanted and step.tries < self._rules.fetch_attempts:
            found = self._still_ours(step)
            if found is None:
                return
            self._progress(step, 10, "Fetching the images.")
            if not self._fetch_each(step, wanted, found.patient_id):
                return
        self._progress(step, 30, "Analysing.")
        self._advance(step, StepState.ANALYSING)

    def _missing(self, step: Step) -> list[Missing]:
        with self._database.read() as tx:
            return missing_of(tx, step)

    def _fetch_each(self, step: Step, wanted: list[Missing], patient_id: str) -> bool:
        """Fetch what is missing. Returns False if the step waits, because not all came."""
        error, is_away = fetch_each(self._fetch, wanted, patient_id)
        if not self._missing(step):
            return True
        patience_s = 3600.0 * self._rules.patience_hours
        if is_away and self._clock() - (step.claimed_at or step.created_at) < patience_s:
            self._wait(step, WHILE_AWAY_S, error)  # being away is no try: the images are not refused
        else:
            self._later(step, error)
        return False

    # The end

    def _look(self, step: Step) -> None:
        """Is everything analysed, and delivered?"""
        if self._is_cancelled(step):
            return
        with self._database.transaction() as tx:
            outcomes = [step_outcomes.outcome_of(tx, one) for one in workitems.inputs_of(tx, step.id)]
            decided = summed_up(outcomes, lambda ids: self._ending.can_be_told(tx, ids))
            if decided is None:
                workitems.postpone(tx, step.id, self._clock() + LOOK_EVERY_S)
            else:
                workitems.decide(tx, step, self._clock(), *decided)

    def _is_cancelled(self, step: Step) -> bool:
        """Whether the requester wants no more of it; then that is how it ends."""
        if step.cancel_reason is None:
            return False
        sentence = f"Cancelled by the requester: {step.cancel_reason or 'no reason given'}"
        with self._database.transaction() as tx:
            workitems.decide(tx, step, self._clock(), (), Refusal("", sentence))
        return True

    def _tell(self, step: Step) -> None:
        """Tell the worklist how the step ended; if it knows already, or an answer was lost, its state says so."""
        state = contents.CANCELED if step.refusal else contents.COMPLETED
        with self._database.read() as tx:
            final = self._ending.data_set(tx, step)
        said = self._worklist.change(step.workitem_uid, step.transaction_uid, final)
        if said.answer is Answer.DONE:
            said = self._worklist.end(step.workitem_uid, step.transaction_uid, state)
        if said.answer is Answer.DONE:
            self._advance(step, StepState(state))
            return
        found = self._worklist.read(step.workitem_uid)
        if found is not None and found.state == state and said.answer is not Answer.NOT_OURS:
            self._advance(step, StepState(state))
        elif found is None or found.state != contents.IN_PROGRESS or said.answer is Answer.NOT_OURS:
            where = "unknown" if found is None else found.state
            self._advance(step, StepState.LOST, error=f"{said.text}; at the worklist it is {where}")
        else:
            self._later(step, said.text, MOST_TRIES if said.answer in FUTILE else None)
