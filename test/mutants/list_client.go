package mutants

func init() { All = append(All, client...) }

// client takes out what keeps a client's requests going across moves.
var client = []Mutant{
	{
		Name: "parked-once", Fault: "what a client sent to the target is lost with the way there", Package: "rpcnet", Tests: "TestWhatIsParkedGoesAgain",
		Edits: []Edit{{"rpcnet/route_warm.go", "	if c.frozen {\n		c.resend()\n	}\n}\n\n// gotFrozen", "}\n\n// gotFrozen"}},
	},
	{
		Name: "bounced-thaws", Fault: "queries go to an owner that is frozen still, which passes over them", Package: "rpcnet", Tests: "TestBouncedGoesBack",
		Edits: []Edit{{"rpcnet/route_frames.go", "c.dropWarm() // the owner says when it goes on: until then it passes over queries", "c.dropWarm()\n			c.thaw(now)"}},
	},
	{
		Name: "queries-acknowledge", Fault: "pushes count as acknowledged by a query, of which the owner takes nothing", Package: "rpcnet", Tests: "TestQueriesAcknowledgeNoPushes",
		Edits: []Edit{{"rpcnet/requests.go", "if !p.readOnly { // of a query the owner looks at nothing else", "if true {"}},
	},
	{
		Name: "pushes-told-once", Fault: "what was said of pushes on a stream that broke is not said again", Package: "rpcnet", Tests: "TestQueriesAcknowledgeNoPushes",
		Edits: []Edit{{"rpcnet/route.go", "	c.pushAcked = 0\n	c.gotPushed(now, c.delivered)\n", ""}},
	},
	{
		Name: "cancel-gives-up", Fault: "a cancel that is refused for space is not sent again, and holds up all later writes", Package: "rpcnet", Tests: "TestCancelRefusedForSpaceGoesAgain",
		Edits: []Edit{{"rpcnet/answers.go", "if p.refusals >= refusalsMax && !p.cancel {", "if p.refusals >= refusalsMax {"}},
	},
	{
		Name: "two-stand-by", Fault: "a client has two streams at its successor, and displaces itself", Package: "rpcnet", Tests: "TestOneStreamStandsBy",
		Edits: []Edit{{"rpcnet/route_standby.go", "	c.dropStandby() // one that was dialled beside the attempt\n", ""}},
	},
	{
		Name: "full-is-final", Fault: "a full connection to the target keeps the client from coming over another", Package: "rpcnet", Tests: "TestWarmIsTriedAgain",
		Edits: []Edit{{"rpcnet/route_warm.go", "if (code == wire.Code_RETRY || code == wire.Code_CONNECTION_FULL) && c.warmAgain() {", "if code == wire.Code_RETRY && c.warmAgain() {"}},
	},
	{
		Name: "former-detaches", Fault: "the late end of a stream of a former stay detaches the client", Package: "worker", Tests: "TestFormerStreamDetachesNobody",
		Edits: []Edit{{"worker/attach.go", "s.act.epoch != att.epoch || ", ""}},
	},
	{
		Name: "own-attach-displaces", Fault: "a client's own attach that falls into a freeze ends its session", Package: "worker", Tests: "TestOwnAttachUnderAFreezeDisplacesNobody",
		Edits: []Edit{{"worker/attach.go", "					q.att.opened(att.epoch, att.number)\n					att.opened(0, 0)\n", "					_ = q\n"}},
	},
	{
		Name: "attach-behind-the-claim", Fault: "an attachment that the end of a freeze does not know of stays for ever", Package: "worker", Tests: "TestAttachBehindTheClaimIsClosed",
		Edits: []Edit{{"worker/source.go", "	if claim.GetPosition() < f.last {\n", "	if false {\n"}},
	},
	{
		Name: "asked-once", Fault: "a client whose answer led to nothing is never asked again what it has received", Package: "worker", Tests: "TestClientsAreAskedAgain",
		Edits: []Edit{{"worker/ack.go", "		q.ackWanted = false // it has said;", "		// it has said;"}},
	},
	{
		Name: "full-outbox-asks-nobody", Fault: "an acknowledgement of pushes that was lost keeps the outbox full", Package: "worker", Tests: "TestFullOutboxAsks",
		Edits: []Edit{{"worker/execute.go", "if code == wire.Code_REPLY_CACHE_FULL || code == wire.Code_OUTBOX_FULL {", "if code == wire.Code_REPLY_CACHE_FULL {"}},
	},
	{
		Name: "raw-panic", Fault: "what a hook panics with makes the abort of its move uncommittable", Package: "worker", Tests: "TestPanicOfAHookIsCommittable",
		Edits: []Edit{{"worker/live.go", "panicked: %s\", clip(fmt.Sprint(p)))", "panicked: %s\", fmt.Sprint(p))"}},
	},
	{
		Name: "due-is-given-up", Fault: "a call between nodes that begins after its deadline looks as if its caller had left", Package: "rpcnet", Tests: "TestPeerCallThatIsDue",
		Edits: []Edit{{"rpcnet/peer_conn.go", "peerContextError(context.DeadlineExceeded, method, c.addr)", "peerContextError(ctx.Err(), method, c.addr)"}},
	},
}
