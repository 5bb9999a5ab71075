package mutants

func init() { All = append(All, client...) }

// client takes out what keeps a client's requests going across moves.
var client = []Mutant{
	{
		Name: "parked-once", Fault: "what a client sent to the target is lost with the way there", Package: "rpcnet", Tests: "TestWhatIsParkedGoesAgain",
		Edits: []Edit{{"rpcnet/route_frames.go", "	if c.frozen {\n		c.resend()\n	}\n}\n\n// gotFrozen", "}\n\n// gotFrozen"}},
	},
	{
		Name: "bounced-thaws", Fault: "queries go to an owner that is frozen still, which passes over them", Package: "rpcnet", Tests: "TestBouncedGoesBack|TestModel",
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
		Edits: []Edit{{"rpcnet/route_frames.go", "if (code == wire.Code_RETRY || code == wire.Code_CONNECTION_FULL) && c.warmAgain() {", "if code == wire.Code_RETRY && c.warmAgain() {"}},
	},
}
