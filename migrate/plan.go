package migrate

import (
	"cmp"
	"math"
	"slices"

	"github.com/baton-cluster/baton/store"
	"github.com/baton-cluster/baton/wire"
)

// RebalanceOptions shape a rebalance.
type RebalanceOptions struct {
	Policy wire.Placement
	// MovesMax bounds the plan; 0: by what one job can hold.
	MovesMax int
}

// PlannedMove is one move of a rebalance.
type PlannedMove struct {
	Session string
	Epoch   uint64
	From    string // worker ids
	To      *wire.Owner
}

// Rebalance is a plan: what would move, and the sessions of each eligible worker
// before and after.
type Rebalance struct {
	Moves         []PlannedMove // by rising session id
	Before, After map[string]int
	// Left is how many moves a complete rebalance would have beyond these.
	Left int
}

// planPage is how many sessions are looked at in one step of planning.
const planPage = 1024

// PlanRebalance works out which sessions to move so that no worker has more than
// its share, rounded up. It moves only what is above somebody's share: those
// sessions first that rank highest elsewhere by rendezvous hashing, then others,
// by rising id. The same tables give the same plan, so a dry run shows what will
// be done.
//
// It moves no more than it must: the sessions that are where they may be stay,
// although hashing all of them anew would put many elsewhere, because every move
// costs its client a pause.
func PlanRebalance(s *store.Store, alive func(string) (bool, bool), opt RebalanceOptions) Rebalance {
	p := newPlacer(s, alive, nil)
	p.policy = opt.Policy
	b := balancer{s: s, p: p, loads: make([]int, len(p.workers)), quota: make([]int, len(p.workers))}
	plan := Rebalance{Before: map[string]int{}, After: map[string]int{}}
	total := 0
	for i := range p.workers {
		if w := &p.workers[i]; w.Eligible {
			total += w.Load
			plan.Before[w.ID] = w.Load
		}
		b.loads[i] = p.workers[i].Load
	}
	for i, share := range shares(opt.Policy, p.workers) {
		// A share that is a whole number must not be rounded past it.
		b.quota[i] = int(math.Ceil(share*float64(total) - 1e-6))
	}
	b.run(true)
	b.run(false)

	limit := wire.JobMovesMax
	if opt.MovesMax > 0 {
		limit = min(limit, opt.MovesMax)
	}
	limit = min(limit, len(b.moves))
	for bytes, i := 0, 0; i < limit; i++ {
		if bytes += len(b.moves[i].Session) + moveBytes; bytes > wire.JobPlanBytesMax {
			limit = i
		}
	}
	plan.Moves, plan.Left = b.moves[:limit:limit], len(b.moves)-limit
	for id, n := range plan.Before {
		plan.After[id] = n
	}
	for i := range plan.Moves {
		plan.After[plan.Moves[i].From]--
		plan.After[plan.Moves[i].To.GetWorker()]++
	}
	slices.SortFunc(plan.Moves, func(a, b PlannedMove) int { return cmp.Compare(a.Session, b.Session) })
	return plan
}

// moveBytes is what a planned move may take in the log besides its session's id.
const moveBytes = 24

type balancer struct {
	s            *store.Store
	p            *placer
	loads, quota []int
	moves        []PlannedMove
	taken        map[string]bool
}

// run goes through the sessions of the workers above their quota. willing: only
// those whose first choice is another worker that has room.
func (b *balancer) run(willing bool) {
	if b.taken == nil {
		b.taken = map[string]bool{}
	}
	for from := range b.p.workers {
		w := &b.p.workers[from]
		for after := ""; w.Eligible && b.loads[from] > b.quota[from]; {
			page := b.s.SessionsOf(w.ID, after, planPage)
			for i := range page {
				if b.loads[from] <= b.quota[from] {
					break
				}
				b.consider(from, &page[i], willing)
			}
			if len(page) < planPage {
				break
			}
			after = page[len(page)-1].ID
		}
	}
}

func (b *balancer) consider(from int, sum *store.Summary, willing bool) {
	if !sum.Valid || sum.Migration != 0 || b.taken[sum.ID] {
		return
	}
	if willing {
		if first := b.first(sum.ID); first == from || b.loads[first] >= b.quota[first] {
			return
		}
	}
	to, ok := b.target(sum.ID)
	if !ok {
		return
	}
	b.taken[sum.ID] = true
	b.loads[from]--
	b.loads[to]++
	w := &b.p.workers[to]
	b.moves = append(b.moves, PlannedMove{
		Session: sum.ID, Epoch: sum.Epoch, From: b.p.workers[from].ID,
		To: &wire.Owner{Worker: w.ID, Incarnation: w.Incarnation},
	})
}

// first is the eligible worker that ranks highest for a session.
func (b *balancer) first(session string) int {
	best, bestScore := -1, 0.0
	for i := range b.p.workers {
		if w := &b.p.workers[i]; w.Eligible {
			if score := w.score(session); best < 0 || score > bestScore {
				best, bestScore = i, score
			}
		}
	}
	return best
}

// target chooses, by the policy, among the workers that are below their quota.
func (b *balancer) target(session string) (int, bool) {
	open := make([]Candidate, len(b.p.workers))
	copy(open, b.p.workers)
	any := false
	for i := range open {
		open[i].Load = b.loads[i]
		open[i].Eligible = open[i].Eligible && b.loads[i] < b.quota[i]
		any = any || open[i].Eligible
	}
	if !any {
		return 0, false
	}
	// Who has room may be filled: the quota is the bound here.
	return PlaceBy(b.p.policy, session, open, math.MaxInt32)
}

// Start completes c to the command that begins the plan as a job.
func (p *Rebalance) Start(c *wire.StartJob) *wire.Command {
	c.Kind = wire.JobKind_JOB_KIND_REBALANCE
	places := map[string]uint32{}
	for _, m := range p.Moves {
		to, ok := places[m.To.GetWorker()]
		if !ok {
			to = uint32(len(c.Targets))
			places[m.To.GetWorker()] = to
			c.Targets = append(c.Targets, m.To)
		}
		c.Plan = append(c.Plan, &wire.PlannedMove{Session: m.Session, Epoch: m.Epoch, To: to})
	}
	return &wire.Command{Kind: &wire.Command_StartJob{StartJob: c}}
}
