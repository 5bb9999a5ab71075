package store

import (
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"pgregory.net/rapid"

	"github.com/baton-cluster/baton/wire"
)

// TestStoreEqualsTwin runs random commands, mostly sensible ones with now and
// then a stale or foreign field, through the store, a replica that is restored
// from a snapshot at random moments, and the twin. All must give the same
// results and hold the same rows, and the two stores the same hash. A snapshot
// taken on the way must stay what it was.
func TestStoreEqualsTwin(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		g := newGenerator(t)
		for range rapid.IntRange(10, 120).Draw(t, "entries") {
			g.step()
		}
		g.finish()
	})
}

type generator struct {
	t       *rapid.T
	s       *Store
	replica *Store
	twin    *twin
	index   uint64
	time    uint64
	nonces  int

	snap    *Snapshot
	snapped []*wire.SnapshotRecord
}

func newGenerator(t *rapid.T) *generator {
	g := &generator{t: t, s: New(), replica: New(), twin: newTwin()}
	budget := rapid.SampledFrom([]uint64{1 << 30, 3 * (wire.SessionBytesFixed + 400)}).Draw(t, "budget")
	g.apply(&wire.Command{Kind: &wire.Command_InitCluster{InitCluster: &wire.InitCluster{
		ClusterId: []byte("c"), ByteBudget: budget, FeatureLevel: 1,
	}}}, registerCmd("w1", "a", 0), registerCmd("w2", "b", 0), registerCmd("w3", "c", 0))
	return g
}

func (g *generator) apply(cmds ...*wire.Command) {
	g.index++
	e := &wire.Entry{TimeUs: g.time, WallUs: int64(g.index), Commands: cmds}
	results, _ := g.s.Apply(g.index, e)
	replicated, _ := g.replica.Apply(g.index, e)
	want := g.twin.apply(g.index, e)
	for i, c := range cmds {
		if diff := cmp.Diff(want[i], results[i], protocmp.Transform()); diff != "" {
			g.t.Fatalf("%v\n(- twin, + store):\n%s", c, diff)
		}
		if !proto.Equal(results[i], replicated[i]) {
			g.t.Fatalf("%v\nthe replica answers %v", c, replicated[i])
		}
	}
	if g.s.Hash() != g.replica.Hash() {
		g.t.Fatalf("the hashes part ways after %v", cmds)
	}
}

func (g *generator) step() {
	g.time += rapid.SampledFrom([]uint64{0, 0, 0, 1, second, 30 * second, ttl}).Draw(g.t, "elapsed")
	if len(g.s.joinTokens) > 1 && g.rarely("a day later") {
		g.time += wire.JoinTokenMemoryUS
	}
	if len(g.s.keys) > 1 && g.rarely("much later") {
		g.time += keyRetentionUS
	}
	var cmds []*wire.Command
	for range rapid.IntRange(1, 4).Draw(g.t, "commands") {
		cmds = append(cmds, g.command())
	}
	g.apply(cmds...)
	if g.rarely("servers change") {
		g.index++
		voters := [][]string{{"v1"}, {"v1", "v2", "v3"}, {"v1", "v3", "v4"}}[g.number("voters", 2)]
		g.s.SetVoters(g.index, voters)
		g.replica.SetVoters(g.index, voters)
		g.twin.servers(g.index, voters)
	}
	checkInvariants(g.t, g.s)
	switch rapid.IntRange(0, 9).Draw(g.t, "then") {
	case 9:
		g.checkSnapshot()
		g.snap = g.s.Snapshot()
		g.snapped = records(g.t, g.snap)
		restored, err := Load(source(g.snapped))
		if err != nil {
			g.t.Fatalf("load: %v", err)
		}
		g.replica = restored
		checkInvariants(g.t, g.replica)
	case 8:
		g.checkSnapshot()
	}
}

func (g *generator) checkSnapshot() {
	if g.snap == nil {
		return
	}
	if diff := diffRecords(g.snapped, records(g.t, g.snap)); diff != "" {
		g.t.Fatalf("a snapshot changed:\n%s", diff)
	}
}

func (g *generator) finish() {
	g.checkSnapshot()
	got := records(g.t, g.s.Snapshot())
	if diff := diffRecords(g.twin.dump(), got[:len(got)-1]); diff != "" {
		g.t.Fatalf("tables (- twin, + store):\n%s", diff)
	}
}

func (g *generator) pick(name string, of ...string) string {
	return rapid.SampledFrom(of).Draw(g.t, name)
}

// rarely is true about once in ten times: for a field that should be refused.
func (g *generator) rarely(what string) bool {
	return rapid.IntRange(0, 9).Draw(g.t, what) == 9
}

func (g *generator) number(name string, hi uint64) uint64 {
	return rapid.Uint64Range(0, hi).Draw(g.t, name)
}

func (g *generator) owner(worker string) *wire.Owner {
	o := &wire.Owner{Worker: worker, Incarnation: g.s.Worker(worker).GetIncarnation()}
	if g.rarely("stale incarnation") {
		o.Incarnation -= min(o.Incarnation, 1)
	}
	return o
}

// session draws a session and how its owner would name it.
func (g *generator) session() (id string, epoch uint64, o *wire.Owner, r *wire.SessionRow) {
	id = g.pick("session", "a", "b", "c")
	r = g.s.Row(id)
	if r == nil {
		return id, 1, g.owner("w1"), &wire.SessionRow{}
	}
	epoch, o = r.Epoch, r.Owner
	if g.rarely("stale epoch") {
		epoch--
	}
	if g.rarely("other owner") {
		o = g.owner(g.pick("worker", "w1", "w2", "w3"))
	}
	return id, epoch, o, r
}

func (g *generator) migration() uint64 {
	list := g.s.Migrations(4)
	if len(list) == 0 {
		return 1
	}
	return list[g.number("migration", uint64(len(list)-1))].Id
}

func (g *generator) command() *wire.Command {
	client := []byte(g.pick("client", "c1", "c1", "c2", "c3"))
	worker := g.pick("worker", "w1", "w2", "w3")
	kind := g.pick("kind", "open", "attach", "attach", "detach", "claim", "write", "write", "write", "write", "cancel", "ack",
		"close", "assign", "assign", "expire", "begin", "begin", "pivot", "pivot", "abort", "end", "register", "fence", "remove", "lease", "state", "marker", "drain", "rebalance", "update job", "end job", "rotate", "join token")
	switch kind {
	case "open":
		return &wire.Command{Kind: &wire.Command_Open{Open: &wire.OpenSession{
			Session: g.pick("session", "a", "b", "c"), Nonce: []byte(g.pick("nonce", "n1", "n2", "n3")), SecretHash: []byte("h"),
			TtlUs: ttl, Shared: rapid.Bool().Draw(g.t, "shared"), Owner: g.owner(worker),
			DeadlineUs: g.time + rapid.SampledFrom([]uint64{10 * second, 200 * second}).Draw(g.t, "deadline"), By: "by",
		}}}
	case "register":
		g.nonces++
		cmd := registerCmd(worker, fmt.Sprint("r", rapid.IntRange(max(0, g.nonces-1), g.nonces).Draw(g.t, "nonce")), g.owner(worker).Incarnation)
		if rapid.IntRange(0, 3).Draw(g.t, "moved") == 0 {
			cmd.GetRegisterWorker().Place.Inode++
			cmd.GetRegisterWorker().Place.Local = rapid.Bool().Draw(g.t, "local")
		}
		return cmd
	case "remove":
		o := g.owner(worker)
		return &wire.Command{Kind: &wire.Command_RemoveWorker{RemoveWorker: &wire.RemoveWorker{Id: o.Worker, Incarnation: o.Incarnation}}}
	case "fence":
		config, _ := g.s.Voters()
		if g.rarely("older voters") {
			config -= min(config, 1)
		}
		return with(fenceCmd(g.owner(worker)), func(c *wire.Command) { c.GetFenceWorker().VoterConfig = config })
	case "lease":
		return leaseCmd(1000 * rapid.SampledFrom([]uint64{0, 200, 1000, 5000, 5001}).Draw(g.t, "lease"))
	case "state":
		return stateCmd(worker, wire.WorkerState(rapid.IntRange(1, 2).Draw(g.t, "state")), rapid.Bool().Draw(g.t, "until"))
	case "marker":
		return &wire.Command{Kind: &wire.Command_ReadMarker{ReadMarker: &wire.ReadMarker{Owner: g.owner(worker)}}}
	case "drain", "rebalance", "update job", "end job":
		return g.jobCommand(kind, worker)
	case "pivot", "abort", "end":
		return g.migrationCommand(kind)
	case "rotate":
		return g.rotateCommand()
	case "join token":
		return g.joinTokenCommand(g.pick("named", "", "n4"), g.pick("name", "name of w1", "n4", "n5"))
	}
	id, epoch, o, r := g.session()
	switch kind {
	case "attach":
		return &wire.Command{Kind: &wire.Command_Attach{Attach: &wire.Attach{
			Session: id, Epoch: epoch, Owner: o, Number: max(1, r.AttachHigh) + g.number("number", 2) - min(1, r.AttachHigh),
			Client: client, Fresh: rapid.Bool().Draw(g.t, "fresh"),
		}}}
	case "detach":
		return &wire.Command{Kind: &wire.Command_Detach{Detach: &wire.Detach{
			Session: id, Epoch: epoch, Owner: o, Number: r.AttachHigh - min(r.AttachHigh, g.number("number", 1)),
		}}}
	case "claim":
		return &wire.Command{Kind: &wire.Command_Claim{Claim: &wire.Claim{Session: id, Epoch: epoch, Owner: o}}}
	case "close":
		return &wire.Command{Kind: &wire.Command_Close{Close: &wire.CloseSession{Session: id, Epoch: epoch, Owner: o}}}
	case "assign":
		return &wire.Command{Kind: &wire.Command_Assign{Assign: &wire.Assign{
			Session: id, Replaces: epoch, Owner: g.owner(worker), Reason: "why", By: "by",
		}}}
	case "expire":
		return &wire.Command{Kind: &wire.Command_Expire{Expire: &wire.Expire{Session: id, Epoch: epoch}}}
	case "begin":
		g.nonces++
		return &wire.Command{Kind: &wire.Command_Begin{Begin: &wire.BeginMigration{
			Nonce:   []byte(fmt.Sprint("m", rapid.IntRange(max(0, g.nonces-1), g.nonces).Draw(g.t, "nonce"))),
			Session: id, SourceEpoch: epoch, Source: o, Target: g.owner(worker), TokenHash: []byte("t"),
			DeadlineUs: g.time + g.number("deadline", 20*second), Reason: wire.Reason_REASON_ADMIN_REQUEST, By: "by", Job: g.jobOrNone(),
			ConfirmedBy: "op", Metadata: []*wire.Label{{Key: "k", Value: "v"}},
		}}}
	}
	return g.clientCommand(kind, id, epoch, o, r, client)
}

func (g *generator) rotateCommand() *wire.Command {
	keys := g.s.Keys()
	next := uint64(1)
	if len(keys) > 0 {
		next += keys[len(keys)-1].Generation
	}
	g.nonces++
	return rotateCmd(next+g.number("generation", 1)-g.number("behind", 1), fmt.Sprint("k", rapid.IntRange(max(0, g.nonces-1), g.nonces).Draw(g.t, "nonce")),
		uint32(g.number("kinds", 8)))
}

func (g *generator) joinTokenCommand(named, name string) *wire.Command {
	id := byte(g.number("token", 3))
	switch g.pick("with the token", "make", "use", "use", "revoke") {
	case "make":
		return makeTokenCmd(id, named, rapid.SampledFrom([]uint64{0, second, ttl, wire.JoinTokenLifeUSMax + 1}).Draw(g.t, "life"))
	case "revoke":
		return revokeTokenCmd(id)
	}
	return with(useTokenCmd(id, name, byte(g.number("key", 1))), func(c *wire.Command) {
		if g.rarely("forged") {
			c.GetUseJoinToken().SecretHash = hash32(99)
		}
	})
}

func (g *generator) job() uint64 {
	list := g.s.Jobs(3)
	if len(list) == 0 {
		return 1
	}
	return list[g.number("job", uint64(len(list)-1))].Id
}

func (g *generator) jobOrNone() uint64 {
	if rapid.Bool().Draw(g.t, "of a job") {
		return g.job()
	}
	return 0
}

func (g *generator) jobCommand(kind, worker string) *wire.Command {
	pace := &wire.Pace{MaxPauseUs: g.number("max pause", 1), Rate: uint32(g.number("rate", 1))}
	deadline := rapid.SampledFrom([]uint64{0, 0, g.time, g.time + 20*second}).Draw(g.t, "deadline")
	switch kind {
	case "update job":
		u := &wire.UpdateJob{Job: g.job(), State: wire.JobState(g.number("state", 3)), DeadlineUs: deadline, By: "by",
			Confirm: rapid.Bool().Draw(g.t, "confirm")}
		if rapid.Bool().Draw(g.t, "pace") {
			u.Pace = pace
		}
		return &wire.Command{Kind: &wire.Command_UpdateJob{UpdateJob: u}}
	case "end job":
		return &wire.Command{Kind: &wire.Command_EndJob{EndJob: &wire.EndJob{
			Job: g.job(), State: wire.JobState(2 + g.number("state", 3)), Code: wire.Code_NO_TARGET, Reason: "why",
			Failed: g.number("failed", 3), Undrain: rapid.Bool().Draw(g.t, "undrain"),
		}}}
	}
	g.nonces++
	c := &wire.StartJob{
		Nonce: []byte(fmt.Sprint("j", rapid.IntRange(max(0, g.nonces-1), g.nonces).Draw(g.t, "nonce"))), Kind: wire.JobKind_JOB_KIND_DRAIN,
		Priority: uint32(g.number("priority", 6)), Pace: pace, DeadlineUs: deadline, By: "by",
	}
	if rapid.Bool().Draw(g.t, "to be confirmed") {
		c.ConfirmByUs = g.time + g.number("confirm by", 20*second)
	}
	if kind == "drain" {
		c.Worker, c.UntilRegister = worker, rapid.Bool().Draw(g.t, "until")
		if rapid.Bool().Draw(g.t, "incarnation") {
			c.Incarnation = g.owner(worker).Incarnation
		}
		return &wire.Command{Kind: &wire.Command_StartJob{StartJob: c}}
	}
	c.Kind = wire.JobKind_JOB_KIND_REBALANCE
	c.Targets = []*wire.Owner{g.owner("w1"), g.owner("w2")}
	for _, id := range []string{"a", "b", "c"}[g.number("moves", 3):] {
		c.Plan = append(c.Plan, &wire.PlannedMove{Session: id, Epoch: g.s.Row(id).GetEpoch(), To: uint32(g.number("to", 2))})
	}
	return &wire.Command{Kind: &wire.Command_StartJob{StartJob: c}}
}

func (g *generator) migrationCommand(kind string) *wire.Command {
	id := g.migration()
	switch kind {
	case "abort":
		return abortCmd(id)
	case "end":
		return endCmd(id, g.number("pause", 3))
	}
	p := &wire.CommitPivot{Migration: id, Attested: id, Digest: g.number("digest", 1), Warm: [][]byte{[]byte("c1"), []byte("c2")}}
	if r := g.s.Row(g.s.Migration(id).GetSession()); r != nil {
		p.Change = r.Change
	}
	if g.rarely("not attested") {
		p.Attested = 0
	}
	if g.rarely("other change") {
		p.Change++
	}
	p.Warm = p.Warm[:g.number("warm", 2)]
	return &wire.Command{Kind: &wire.Command_Pivot{Pivot: p}}
}

func (g *generator) clientCommand(kind, id string, epoch uint64, o *wire.Owner, r *wire.SessionRow, client []byte) *wire.Command {
	win := (*twinRow)(r).window(client)
	prev := win.GetLast()
	seq := prev + 1 + g.number("skip", 1)
	if g.rarely("old seq") {
		seq = prev + 1 - min(prev, 1+g.number("back", 2))
	}
	if g.rarely("other prev") {
		prev++
	}
	ack := win.GetAck()
	if g.rarely("ack") {
		ack = seq
	}
	pushAck := win.GetPushAck() + g.number("push ack", 1)
	switch kind {
	case "cancel":
		return &wire.Command{Kind: &wire.Command_Cancel{Cancel: &wire.Cancel{
			Session: id, Epoch: epoch, Owner: o, Client: client, Seq: seq, Prev: prev, Ack: ack,
		}}}
	case "ack":
		return &wire.Command{Kind: &wire.Command_Ack{Ack: &wire.Ack{
			Session: id, Epoch: epoch, Owner: o, Client: client, Ack: ack, PushAck: pushAck,
		}}}
	}
	w := &wire.Write{
		Session: id, Epoch: epoch, Owner: o, Client: client, Seq: seq, Prev: prev, Ack: ack, PushAck: pushAck,
		Reply: &wire.Reply{Seq: seq, Payload: make([]byte, g.number("reply", 20))},
	}
	for range g.number("changes", 10) {
		c := put(g.pick("key", "a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l"), g.pick("value", "", "x", "yyyyyyyyyyyyyyyyyyyyyy"))
		if g.number("delete", 2) == 0 {
			c = del(c.Key)
		}
		w.Changes = append(w.Changes, c)
	}
	for range g.number("pushes", 3) / 2 {
		w.Pushes = append(w.Pushes, []byte("push"))
	}
	w.Digest = wire.Digest(w)
	return &wire.Command{Kind: &wire.Command_Write{Write: w}}
}
