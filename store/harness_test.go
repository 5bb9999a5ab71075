package store

import (
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/baton-cluster/baton/wire"
)

const (
	second = uint64(time.Second / time.Microsecond)
	ttl    = 100 * second
)

// harness drives a store one entry at a time and checks every invariant after
// each.
type harness struct {
	t      *testing.T
	s      *Store
	index  uint64
	time   uint64
	wall   int64
	events []Event
}

// newHarness has a cluster and three workers, w1 to w3.
func newHarness(t *testing.T) *harness {
	h := &harness{t: t, s: New()}
	h.ok(&wire.Command{Kind: &wire.Command_InitCluster{InitCluster: &wire.InitCluster{
		ClusterId: []byte("cluster"), ByteBudget: 1 << 30, FeatureLevel: 1,
	}}})
	h.voters("w1", "w2", "w3")
	for _, id := range []string{"w1", "w2", "w3"} {
		h.register(id, id+" first", 0)
	}
	return h
}

// voters applies a configuration of servers.
func (h *harness) voters(ids ...string) {
	h.t.Helper()
	h.index++
	h.events = h.s.SetVoters(h.index, ids)
	checkInvariants(h.t, h.s)
}

// entry applies commands as one entry.
func (h *harness) entry(cmds ...*wire.Command) []*wire.Result {
	h.t.Helper()
	h.index++
	results, events := h.s.Apply(h.index, &wire.Entry{TimeUs: h.time, WallUs: h.wall, Commands: cmds})
	h.events = events
	checkInvariants(h.t, h.s)
	return results
}

func (h *harness) do(c *wire.Command) *wire.Result {
	h.t.Helper()
	return h.entry(c)[0]
}

// ok applies a command that must be accepted.
func (h *harness) ok(c *wire.Command) *wire.Result {
	h.t.Helper()
	res := h.do(c)
	if res.Code != wire.Code_OK {
		h.t.Fatalf("%v: got %v, want OK", c, res.Code)
	}
	return res
}

// refuse applies a command that must be refused with code, and checks that it
// changed nothing but log position and time.
func (h *harness) refuse(code wire.Code, c *wire.Command) *wire.Result {
	h.t.Helper()
	sum, used, epochs := h.s.sum, h.s.used, h.s.epochs
	res := h.do(c)
	if res.Code != code {
		h.t.Fatalf("%v: got %v, want %v", c, res.Code, code)
	}
	if res.Before != res.After || res.Duplicate || res.Row != nil {
		h.t.Fatalf("%v: a refusal that reports an effect: %v", c, res)
	}
	h.unchanged(c, sum, used, epochs)
	return res
}

// duplicate applies a command whose effect must be there already.
func (h *harness) duplicate(c *wire.Command) *wire.Result {
	h.t.Helper()
	sum, used, epochs := h.s.sum, h.s.used, h.s.epochs
	res := h.ok(c)
	if !res.Duplicate || res.Before != res.After {
		h.t.Fatalf("%v: got %v, want a duplicate without effect", c, res)
	}
	h.unchanged(c, sum, used, epochs)
	return res
}

func (h *harness) unchanged(c *wire.Command, sum, used, epochs uint64) {
	h.t.Helper()
	if h.s.sum != sum || h.s.used != used || h.s.epochs != epochs {
		h.t.Fatalf("%v: it changed the tables", c)
	}
	if len(h.events) != 0 {
		h.t.Fatalf("%v: events %v", c, h.events)
	}
}

func (h *harness) tick(us uint64) {
	h.t.Helper()
	h.time += us
	h.ok(&wire.Command{Kind: &wire.Command_Tick{Tick: &wire.Tick{}}})
}

// Commands. o is the owner: the current incarnation unless said otherwise.

func (h *harness) owner(worker string) *wire.Owner {
	if w := h.s.Worker(worker); w != nil {
		return &wire.Owner{Worker: worker, Incarnation: w.Incarnation}
	}
	return &wire.Owner{Worker: worker, Incarnation: 1 << 40}
}

func (h *harness) row(id string) *wire.SessionRow {
	h.t.Helper()
	r := h.s.Row(id)
	if r == nil {
		h.t.Fatalf("no session %q", id)
	}
	return r
}

func (h *harness) register(id, nonce string, predecessor uint64) uint64 {
	h.t.Helper()
	return h.ok(registerCmd(id, nonce, predecessor)).Epoch
}

func registerCmd(id, nonce string, predecessor uint64) *wire.Command {
	return &wire.Command{Kind: &wire.Command_RegisterWorker{RegisterWorker: &wire.RegisterWorker{
		Id: id, Name: "name of " + id, Nonce: []byte(nonce), Predecessor: predecessor,
		Endpoint: &wire.Endpoint{Host: "host", UserPort: 1, MgmtPort: 2}, Version: "v1", Place: home(),
	}}}
}

// home is the place of every worker that does not move.
func home() *wire.Place { return &wire.Place{Boot: "boot", Device: 1, Inode: 7, Local: true} }

func fenceCmd(o *wire.Owner) *wire.Command {
	return &wire.Command{Kind: &wire.Command_FenceWorker{FenceWorker: &wire.FenceWorker{
		Id: o.Worker, Incarnation: o.Incarnation, Reason: "dead", VoterConfig: 1 << 40,
	}}}
}

func leaseCmd(us uint64) *wire.Command {
	return &wire.Command{Kind: &wire.Command_SetLease{SetLease: &wire.SetLease{LeaseUs: us, By: "by"}}}
}

func drainCmd(id string, until bool) *wire.Command {
	return stateCmd(id, wire.WorkerState_WORKER_STATE_DRAINING, until)
}

func stateCmd(id string, state wire.WorkerState, until bool) *wire.Command {
	return &wire.Command{Kind: &wire.Command_SetWorkerState{SetWorkerState: &wire.SetWorkerState{
		Id: id, State: state, UntilRegister: until, By: "operator",
	}}}
}

func (h *harness) openCmd(id, worker string) *wire.Command {
	return &wire.Command{Kind: &wire.Command_Open{Open: &wire.OpenSession{
		Session: id, Nonce: []byte("nonce of " + id), SecretHash: []byte("hash"), TtlUs: ttl,
		Owner: h.owner(worker), DeadlineUs: h.time + 10*second, By: "client",
	}}}
}

func (h *harness) open(id, worker string) *wire.SessionRow {
	h.t.Helper()
	return h.ok(h.openCmd(id, worker)).Row
}

func (h *harness) openShared(id, worker string) *wire.SessionRow {
	h.t.Helper()
	c := h.openCmd(id, worker)
	c.GetOpen().Shared = true
	return h.ok(c).Row
}

// attachCmd, and those below, name the session's present epoch and owner.
func (h *harness) attachCmd(id, client string, number uint64) *wire.Command {
	h.t.Helper()
	r := h.row(id)
	return &wire.Command{Kind: &wire.Command_Attach{Attach: &wire.Attach{
		Session: id, Epoch: r.Epoch, Owner: r.Owner, Number: number, Client: []byte(client), Fresh: true,
	}}}
}

func (h *harness) detachCmd(id string, number uint64) *wire.Command {
	h.t.Helper()
	r := h.row(id)
	return &wire.Command{Kind: &wire.Command_Detach{Detach: &wire.Detach{
		Session: id, Epoch: r.Epoch, Owner: r.Owner, Number: number,
	}}}
}

func (h *harness) claimCmd(id string) *wire.Command {
	h.t.Helper()
	r := h.row(id)
	return &wire.Command{Kind: &wire.Command_Claim{Claim: &wire.Claim{Session: id, Epoch: r.Epoch, Owner: r.Owner}}}
}

func (h *harness) closeCmd(id string) *wire.Command {
	h.t.Helper()
	r := h.row(id)
	return &wire.Command{Kind: &wire.Command_Close{Close: &wire.CloseSession{Session: id, Epoch: r.Epoch, Owner: r.Owner}}}
}

func (h *harness) writeCmd(id, client string, seq, prev uint64, changes ...*wire.Change) *wire.Command {
	h.t.Helper()
	r := h.row(id)
	w := &wire.Write{
		Session: id, Epoch: r.Epoch, Owner: r.Owner, Client: []byte(client), Seq: seq, Prev: prev,
		Changes: changes, Reply: &wire.Reply{Seq: seq, Payload: []byte("reply")},
	}
	w.Digest = wire.Digest(w)
	return &wire.Command{Kind: &wire.Command_Write{Write: w}}
}

func (h *harness) cancelCmd(id, client string, seq, prev uint64) *wire.Command {
	h.t.Helper()
	r := h.row(id)
	return &wire.Command{Kind: &wire.Command_Cancel{Cancel: &wire.Cancel{
		Session: id, Epoch: r.Epoch, Owner: r.Owner, Client: []byte(client), Seq: seq, Prev: prev,
	}}}
}

func (h *harness) ackCmd(id, client string, ack, pushAck uint64) *wire.Command {
	h.t.Helper()
	r := h.row(id)
	return &wire.Command{Kind: &wire.Command_Ack{Ack: &wire.Ack{
		Session: id, Epoch: r.Epoch, Owner: r.Owner, Client: []byte(client), Ack: ack, PushAck: pushAck,
	}}}
}

func (h *harness) assignCmd(id, worker string) *wire.Command {
	h.t.Helper()
	return &wire.Command{Kind: &wire.Command_Assign{Assign: &wire.Assign{
		Session: id, Replaces: h.row(id).Epoch, Owner: h.owner(worker), Reason: "failover", By: "director",
	}}}
}

func (h *harness) expireCmd(id string) *wire.Command {
	h.t.Helper()
	return &wire.Command{Kind: &wire.Command_Expire{Expire: &wire.Expire{Session: id, Epoch: h.row(id).Epoch}}}
}

func (h *harness) beginCmd(id, target, nonce string) *wire.Command {
	h.t.Helper()
	r := h.row(id)
	return &wire.Command{Kind: &wire.Command_Begin{Begin: &wire.BeginMigration{
		Nonce: []byte(nonce), Session: id, SourceEpoch: r.Epoch, Source: r.Owner, Target: h.owner(target),
		TokenHash: []byte("token hash"), DeadlineUs: h.time + 15*second,
		Reason: wire.Reason_REASON_LOAD_BALANCING, Priority: 3, By: "operator",
	}}}
}

func (h *harness) begin(id, target string) *wire.Migration {
	h.t.Helper()
	return h.ok(h.beginCmd(id, target, "begin "+id+" "+target)).Migration
}

// pivotCmd is one that should be accepted.
func (h *harness) pivotCmd(m *wire.Migration, warm ...string) *wire.Command {
	p := &wire.CommitPivot{Migration: m.Id, Digest: 77, Attested: m.Id}
	if r := h.s.Row(m.Session); r != nil {
		p.Change = r.Change
	}
	for _, w := range warm {
		p.Warm = append(p.Warm, []byte(w))
	}
	return &wire.Command{Kind: &wire.Command_Pivot{Pivot: p}}
}

func abortCmd(id uint64) *wire.Command {
	return &wire.Command{Kind: &wire.Command_Abort{Abort: &wire.AbortMigration{Migration: id, Reason: "why"}}}
}

func endCmd(id, pauseUS uint64) *wire.Command {
	return &wire.Command{Kind: &wire.Command_End{End: &wire.EndMigration{Migration: id, PauseUs: pauseUS}}}
}

func put(key, value string) *wire.Change { return &wire.Change{Key: key, Value: []byte(value)} }
func del(key string) *wire.Change        { return &wire.Change{Key: key, Delete: true} }

// attached opens session "s" at w1 with client "c" attached.
func (h *harness) attached() *harness {
	h.t.Helper()
	h.open("s", "w1")
	h.ok(h.attachCmd("s", "c", 1))
	return h
}

// with clones a command and changes it.
func with(c *wire.Command, change func(*wire.Command)) *wire.Command {
	c = proto.Clone(c).(*wire.Command)
	change(c)
	return c
}
