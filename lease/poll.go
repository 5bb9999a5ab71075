package lease

import (
	"slices"
	"time"
)

const (
	// pollSlack is added to when promises are thought to run out, so that the
	// next round does not come a moment too early, and once more.
	pollSlack = time.Millisecond
	// pollRetry is how long a round waits for what it still needs before the next
	// begins, at first: each that brings too few answers makes the next twice as
	// long, up to half a T or pollRound, whichever is more, because the servers may be that far apart.
	pollRetry = 50 * time.Millisecond
	pollRound = 400 * time.Millisecond
)

// Ask is a question of a Poll to one server.
type Ask struct {
	Server      string
	Incarnation uint64
	// Withdraw asks for a binding withdrawal, else only how long the promise runs.
	Withdraw bool
	round    int
}

// Keys is what a leader knows when it steps a Poll.
type Keys struct {
	// Dead is the second key: gossip calls the worker dead, its management port
	// refuses connections, or an operator says that it is gone. Without it the
	// poll waits one more T after the promises have run out.
	Dead bool
	T    time.Duration
	// MayFence: the configuration of the poll is in force, no change of the
	// voters is under way, and VoterWait has passed since the last (L4).
	MayFence bool
}

// PollState is how a Poll stands.
type PollState uint8

const (
	// PollRuns: promises run, or are not known yet.
	PollRuns PollState = iota
	// PollAlive: a majority has promised anew since the poll began: the worker is
	// well. The poll may be given up, and has cost the worker nothing.
	PollAlive
	// PollOut: a majority has no promise left; what is missing is a key.
	PollOut
	// PollWithdrawing: withdrawals have been asked for, and it is to be finished: who
	// withdrew makes the worker register anew. If a majority promised once more before
	// it was asked, the poll runs on.
	PollWithdrawing
	// PollAgreed: a majority has withdrawn. The incarnation may be fenced.
	PollAgreed
)

// answer is what one server said last.
type answer struct {
	Promise
	// The promise runs out between these, by the leader's clock: the server looked
	// at it after it was asked, and before its answer came.
	earliest, runsOut time.Duration
	round             int
	asked             bool // to withdraw, in that round
}

func (a answer) none() bool { return a.Left == 0 || a.Withdrawn }

// counts reports whether the answer counts in a round: a withdrawal does in all.
func (a answer) counts(round int) bool { return a.Withdrawn || a.round == round }

// Poll is a leader's attempt to fence one incarnation (L2). It asks every voter
// how long its promise still runs, and aims its next round at when a majority's
// will have run out. Only when a majority says in one round that it has none, it
// asks for withdrawals. So a poll that is given up, or whose leader is lost,
// strands no healthy worker. Not safe for concurrent use.
type Poll struct {
	incarnation uint64
	config      uint64
	voters      []string
	began       time.Duration

	round   int
	started time.Duration // when the round began
	wait    time.Duration // and how long its answers count
	next    time.Duration // when the next round is due
	answers map[string]answer
	// out is since when a majority has had no promise, as far as is known.
	out         time.Duration
	isOut       bool
	withdrawing bool
	t           time.Duration
}

// NewPoll begins a poll among the voters of configuration config.
func NewPoll(now time.Duration, incarnation, config uint64, voters []string) *Poll {
	return &Poll{
		incarnation: incarnation, config: config, voters: slices.Clone(voters), began: now, next: now, wait: pollRetry,
		answers: make(map[string]answer, len(voters)),
	}
}

// Incarnation is the one that is to be fenced, Config the voter configuration in
// which withdrawals are counted.
func (p *Poll) Incarnation() uint64 { return p.incarnation }
func (p *Poll) Config() uint64      { return p.config }

// State tells how the poll stands.
func (p *Poll) State() PollState {
	switch {
	case p.have(func(a answer) bool { return a.Withdrawn }):
		return PollAgreed
	case p.withdrawing:
		return PollWithdrawing
	case p.isOut:
		return PollOut
	case p.have(func(a answer) bool { return !a.none() && !a.Quiet && a.earliest > p.began+p.t+pollSlack }):
		return PollAlive
	}
	return PollRuns
}

// have reports whether a majority's answers are such.
func (p *Poll) have(which func(answer) bool) bool {
	n := 0
	for _, v := range p.voters {
		if a, ok := p.answers[v]; ok && which(a) {
			n++
		}
	}
	return n >= Majority(len(p.voters))
}

// Step returns what to ask now, in the order of the voters, and when to step
// again at the latest; an answer is another occasion.
func (p *Poll) Step(now time.Duration, k Keys) (asks []Ask, wake time.Duration) {
	p.t = k.T
	late := false
	switch {
	case p.State() == PollAgreed:
		return nil, now + pollRetry
	case p.have(func(a answer) bool { return a.none() && a.counts(p.round) }):
		if !p.isOut {
			p.out, p.isOut = now, true
		}
		if at := p.out + Stretch(k.T); !k.Dead && now < at {
			p.next = at // a key is missing: one more T, then ask anew
		} else if k.MayFence && now < p.next {
			p.withdrawing = true
			return p.withdraw(), p.next
		}
		late = now >= p.next
	default:
		p.aim(now)
	}
	if now < p.next {
		return nil, p.next
	}
	return p.again(now, late), p.next
}

// aim puts the next round where a majority's promises will have run out, by the
// answers of this one.
func (p *Poll) aim(now time.Duration) {
	var ends []time.Duration
	for _, v := range p.voters {
		if a, ok := p.answers[v]; ok && a.counts(p.round) {
			ends = append(ends, a.runsOut)
		}
	}
	need := Majority(len(p.voters))
	if len(ends) < need {
		return // the round waits for more, until next
	}
	slices.Sort(ends)
	p.next = ends[need-1] + pollSlack
	p.isOut = p.isOut && p.next <= now
	p.withdrawing = p.withdrawing && p.isOut
}

// again starts a round, a longer one if the last brought too few answers, or they were
// late.
func (p *Poll) again(now time.Duration, late bool) []Ask {
	if p.round > 0 && (late || !p.have(func(a answer) bool { return a.counts(p.round) })) {
		p.wait = min(2*p.wait, max(pollRound, p.t/2))
	}
	p.round++
	p.started, p.next = now, now+p.wait
	asks := make([]Ask, 0, len(p.voters))
	for _, v := range p.voters {
		asks = append(asks, Ask{Server: v, Incarnation: p.incarnation, round: p.round})
	}
	return asks
}

// withdraw asks those that said in this round that they have no promise, once.
func (p *Poll) withdraw() []Ask {
	var asks []Ask
	for _, v := range p.voters {
		a, ok := p.answers[v]
		if !ok || a.round != p.round || !a.none() || a.Withdrawn || a.asked {
			continue
		}
		a.asked = true
		p.answers[v] = a
		asks = append(asks, Ask{Server: v, Incarnation: p.incarnation, Withdraw: true, round: p.round})
	}
	return asks
}

// Answered takes a server's answer to one of Step's questions. Step is to follow.
// What does not come, or comes after its round, is as good as lost, except a
// withdrawal, which is for ever.
func (p *Poll) Answered(now time.Duration, ask Ask, got Promise) {
	if old := p.answers[ask.Server]; old.Withdrawn || ask.round != p.round && !got.Withdrawn {
		return
	}
	p.answers[ask.Server] = answer{
		Promise: got, earliest: p.started + got.Left, runsOut: now + got.Left, round: ask.round, asked: ask.Withdraw,
	}
}
