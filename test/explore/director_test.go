package explore

import (
	"fmt"
	"reflect"
	"time"

	"github.com/baton-cluster/baton/migrate"
	"github.com/baton-cluster/baton/wire"
)

// A director's handoff, as package migrate drives it. Like a state of the tables
// a state of a handoff is a number, and a step is taken by migrate.Handoff itself
// the first time. Time passes for it only by its own deadlines, so no state
// depends on how late it is.

// tell is an Input in small numbers.
type tell struct {
	kind  migrate.InputKind
	bad   bool // a call failed, a proposal was not made
	other bool // the answer is to a command that is not the one in flight
	res   result
	warm  uint8
}

// wants is what a step of a handoff asks for.
type wants struct {
	propose kind
	call    migrate.ActionKind // 0: none (ActCheck is answered at once)
	warm    uint8
	look    bool
	over    bool
}

type handoff struct {
	parent uint32
	in     tell
	start  handoffStart
}

// stepped is a handoff after a step, and what it asks for.
type stepped struct {
	to    uint32
	wants wants
}

// handoffStart is what a handoff is born with.
type handoffStart struct {
	adopted            bool
	m                  move // adopted
	source, sinc       uint8
	to, toInc          uint8
	epoch, nonce, time uint8
}

type handoffKey struct {
	at uint32
	in tell
}

// office has all states of handoffs that were met.
type office struct {
	b     *book
	steps memo[handoffKey, stepped]
	begun memo[handoffStart, stepped]
	list  table[string]
	all   memo[uint32, handoff]
}

const timeout = 9 * time.Second

// begin makes a handoff that has been told to start, to the point where it
// proposes its first command.
func (o *office) begin(s handoffStart) stepped {
	return o.begun.get(s, func() stepped {
		h, _, w := o.birth(s)
		return stepped{o.enter(h, handoff{start: s}), w}
	})
}

func (o *office) birth(s handoffStart) (h *migrate.Handoff, now time.Duration, w wants) {
	if s.adopted {
		h = migrate.AdoptHandoff(o.b.migration(s.m), 0)
		return h, 0, o.wants(h.Step(0, migrate.Input{Kind: migrate.InStart}))
	}
	h = migrate.NewHandoff(migrate.Params{
		Request: migrate.Request{Session: session, Target: worker(s.to), Reason: wire.Reason_REASON_ADMIN_REQUEST, Priority: 3},
		Nonce:   []byte{'b', s.nonce}, ClusterID: clusterID, Timeout: timeout,
	}, 0)
	h.Step(0, migrate.Input{Kind: migrate.InStart})
	h.Step(0, migrate.Input{Kind: migrate.InChecked, Plan: &migrate.Plan{
		Source: owner(s.source, s.sinc), Target: owner(s.to, s.toInc), SourceEpoch: uint64(s.epoch), Attached: true,
	}})
	return h, 0, o.wants(h.Step(0, migrate.Input{Kind: migrate.InConfirmed, TimeUS: uint64(s.time) * tickUS}))
}

func (o *office) wants(acts []migrate.Action) (w wants) {
	for _, a := range acts {
		switch a.Kind {
		case migrate.ActPropose:
			switch a.Command.GetKind().(type) {
			case *wire.Command_Begin:
				w.propose = kBegin
			case *wire.Command_Abort:
				w.propose = kAbort
			case *wire.Command_End:
				w.propose = kEnd
			}
		case migrate.ActPrepare, migrate.ActInvite, migrate.ActAwaitWarm, migrate.ActHandover:
			w.call = a.Kind
			for _, c := range a.Clients {
				w.warm |= 1 << (c[1] - 'a')
			}
		case migrate.ActLook:
			w.look = true
		case migrate.ActFinish:
			w.over = true
		}
	}
	return w
}

// step tells the handoff at number n something.
func (o *office) step(n uint32, in tell) stepped {
	return o.steps.get(handoffKey{n, in}, func() stepped {
		var ins []tell
		at := n
		for {
			h := o.at(at)
			if h.parent == 0 {
				break
			}
			ins = append(ins, h.in)
			at = h.parent
		}
		h, now, w := o.birth(o.at(at).start)
		for i := len(ins) - 1; i >= 0; i-- {
			now, _ = o.tell(h, now, ins[i])
		}
		_, w = o.tell(h, now, in)
		return stepped{o.enter(h, handoff{parent: n, in: in}), w}
	})
}

func (o *office) tell(h *migrate.Handoff, now time.Duration, in tell) (time.Duration, wants) {
	v := migrate.Input{Kind: in.kind}
	if in.bad {
		v.Err = wire.Errorf(wire.Code_UNAVAILABLE, "lost")
	}
	m := o.b.migration(move{id: in.res.mig, phase: in.res.phase, toEpoch: in.res.epoch})
	switch in.kind {
	case migrate.InProposed:
		if !in.other {
			v.Command = inFlight(h)
		}
		v.Result = &wire.Result{Code: wire.Code(in.res.code), Duplicate: in.res.dup, Migration: m}
	case migrate.InInvited, migrate.InWarm:
		for c := range uint8(clientsMax) {
			if in.warm>>c&1 == 1 {
				v.Clients = append(v.Clients, clientOf(c))
			}
		}
	case migrate.InHandedOver:
		v.Handover = &wire.HandoverResp{Migration: m}
	case migrate.InSeen:
		v.Migration = m
	case migrate.InTime:
		if at, ok := h.Deadline(); ok {
			now = at
		}
	}
	return now, o.wants(h.Step(now, v))
}

// inFlight is the command that the handoff waits for.
func inFlight(h *migrate.Handoff) *wire.Command {
	f := reflect.ValueOf(h).Elem().FieldByName("inFlight")
	return (*wire.Command)(f.UnsafePointer())
}

func (b *book) migration(m move) *wire.Migration {
	if m.id == 0 {
		return nil
	}
	return &wire.Migration{
		Id: b.position(m.id), Phase: wire.Phase(m.phase), Session: session, SourceEpoch: uint64(m.epoch), TargetEpoch: uint64(m.toEpoch),
		Source: owner(m.source, m.sinc), Target: owner(m.to, m.toInc),
	}
}

// enter numbers the state that h is in.
func (o *office) enter(h *migrate.Handoff, at handoff) uint32 {
	v := reflect.ValueOf(h).Elem()
	warm := v.FieldByName("warm")
	flight := ""
	if c := inFlight(h); c != nil {
		flight = fmt.Sprintf("%T", c.GetKind())
	}
	key := fmt.Sprint(
		h.State(), " ", h.Migration().GetId(), " ", h.Migration().GetPhase(), " ", h.Migration().GetTargetEpoch(), " ",
		v.FieldByName("cause").IsNil(), v.FieldByName("inCall").Bool(), v.FieldByName("calling").Uint(), v.FieldByName("pivotSeen").Bool(), " ",
		warm.Len(), " ", flight, " ", o.origin(at),
	)
	n := o.list.number(key)
	o.all.get(n, func() handoff { return at })
	return n
}

// origin is what the handoff was born with.
func (o *office) origin(at handoff) handoffStart {
	for at.parent != 0 {
		at = o.at(at.parent)
	}
	return at.start
}

func (o *office) at(n uint32) handoff {
	o.all.mu.RLock()
	defer o.all.mu.RUnlock()
	return o.all.by[n]
}
