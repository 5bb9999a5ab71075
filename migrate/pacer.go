package migrate

import (
	"time"
)

const (
	// paceAim is the share of the pause budget that the pacer steers for: what
	// clients see lies above what the nodes measure, and a wave of moves above
	// the last one.
	paceAim = 0.7
	// paceBack is what is left of the window after a pause past the aim.
	paceBack = 0.5
	// paceStep is by what share a window grows in a round until a first pause was
	// past the aim; what was within the aim before is then within the budget.
	paceStep = 0.25
	// gapMin and gapMax bound the rest between two moves once there is one at a
	// time and pauses are still too long. gapMax is bounded so that a job always
	// gets on: a budget that cannot be kept makes it slow, never stuck.
	gapMin = 50 * time.Millisecond
	gapMax = time.Second
	// rateBurst is how much of a job's rate may come at once, so that a job that
	// waited does not catch up in one wave.
	rateBurst = 200 * time.Millisecond
)

// pacer bounds how many moves are under way at once so that the pauses which
// they cause keep to a budget: additive increase, multiplicative decrease on the
// pauses that the sources report, as TCP does on loss (Chiu and Jain, 1989). All
// jobs of a director share one, with the tightest budget among them: a pause
// does not know whose move lengthened it. Pure; a new director starts carefully
// with one of its own.
type pacer struct {
	budget time.Duration // 0: none
	window float64
	steady bool // it has been too fast once: grow slowly from now on
	// now is the period that moves begin in. A pause of a move from before the
	// last decrease tells nothing about the window since; one from before the last
	// increase, nothing about whether there may be another.
	now  stamp
	good int // pauses within the aim of moves of this round
	gap  time.Duration
	rest time.Duration // nothing is begun before, in elapsed time
	// total and over count pauses, and those past the budget: while these are a
	// hundredth or more, p99 is too long, and the window must not grow.
	total, over uint64
}

// stamp numbers the decreases (cuts) and increases (rounds) of a window.
type stamp struct{ cuts, rounds int }

// aim sets the budget; 0 ends all pacing.
func (p *pacer) aim(budget time.Duration) {
	if budget == p.budget {
		return
	}
	*p = pacer{budget: budget, window: 1, now: stamp{p.now.cuts + 1, p.now.rounds + 1}}
}

// room is how many moves may be under way at now.
func (p *pacer) room(now time.Duration, most int) int {
	switch {
	case p.budget == 0:
		return most
	case now < p.rest:
		return 0
	}
	return min(max(int(p.window), 1), most)
}

// paused takes the pause of a move that began at the stamp from.
func (p *pacer) paused(now, pause time.Duration, from stamp) {
	if p.budget == 0 || pause <= 0 {
		return
	}
	p.total++
	if pause > p.budget {
		p.over++
	}
	if float64(pause) > paceAim*float64(p.budget) {
		p.slower(now, from)
		return
	}
	p.gap /= 2
	if p.gap < gapMin {
		p.gap = 0
	}
	p.rest = now + p.gap
	if from.rounds == p.now.rounds {
		p.good++
	}
	// A window grows once it has been filled and found good: growing on the
	// pauses of a smaller one would overshoot by a round.
	if p.over*100 > p.total || p.good < int(p.window) {
		return
	}
	if p.steady {
		p.window++
	} else {
		p.window += max(1, p.window*paceStep)
	}
	p.good = 0
	p.now.rounds++
}

func (p *pacer) slower(now time.Duration, from stamp) {
	if from.cuts != p.now.cuts {
		return
	}
	p.steady = true
	p.good = 0
	p.now.cuts++
	p.now.rounds++
	if p.window > 1 {
		p.window = max(1, p.window*paceBack)
		return
	}
	p.gap = min(max(2*p.gap, gapMin), gapMax)
	p.rest = now + p.gap
}

// bucket bounds a job's rate: rate a second, with a short burst.
type bucket struct {
	at     time.Duration
	tokens float64
	used   bool
}

// left is how many moves may begin at now.
func (b *bucket) left(now time.Duration, rate uint32) int {
	burst := max(1, float64(rate)*rateBurst.Seconds())
	if !b.used {
		b.used, b.tokens = true, 1
	} else {
		b.tokens = min(burst, b.tokens+(now-b.at).Seconds()*float64(rate))
	}
	b.at = now
	return int(b.tokens)
}

func (b *bucket) take(n int) { b.tokens -= float64(n) }
