package mutants

func init() { All = append(All, former...) }

// former takes out what copes with connections to processes that are no more.
var former = []Mutant{
	{
		Name: "warm-once", Fault: "a client that is called to a node over a connection to its former process does not come", Package: "rpcnet", Tests: "TestWarmIsTriedAgain",
		Edits: []Edit{{"rpcnet/route_frames.go", "case r == c.warm && dialled && c.warmAgain():", "case r == c.warm && false:"}},
	},
	{
		Name: "suspicion-outlives", Fault: "a client shuns a node for what its former process did not answer", Package: "rpcnet", Tests: "TestRestartedOwnerIsTrusted",
		Edits: []Edit{{"rpcnet/route_frames.go", "if c.attached && epoch > max(c.epoch, c.trusted) {", "if c.attached && epoch > max(c.epoch, c.trusted) && false {"}},
	},
	{
		Name: "relay-final", Fault: "a relay takes its own connection to a former process for the target's answer", Package: "rpcnet", Tests: "TestRelayToAFormerProcess",
		Edits: []Edit{{"rpcnet/relay.go", "				code = wire.Code_RETRY\n", "				code = wire.Code_UNAVAILABLE\n"}},
	},
	{
		Name: "successor-by-id", Fault: "clients are not told that their successor is elsewhere now", Package: "worker", Tests: "TestClientsAreToldOfTheirSuccessor",
		Edits: []Edit{{"worker/successor.go", "return endpoint{n.GetId(), n.GetHost(), n.GetUserPort()}", "return endpoint{node: n.GetId()}"}},
	},
	{
		Name: "vote-once", Fault: "a connection to a former process counts as a refused vote", Package: "cluster", Tests: "TestVotesOfRestartedServers",
		Edits: []Edit{{"cluster/votes.go", "for range raftConnsKept + 1 {", "for range 1 {"}},
	},
	{
		Name: "no-doubt", Fault: "calls go on over a connection to a node that has lost its power", Package: "rpcnet", Tests: "TestPeerDoubtsTheSilent",
		Edits: []Edit{{"rpcnet/peer_conn.go", "		c.doubt()\n", ""}},
	},
	{
		Name: "doubts-the-slow", Fault: "a connection whose far side lives is given up over a slow call", Package: "rpcnet", Tests: "TestPeerTrustsTheSlow",
		Edits: []Edit{{"rpcnet/peer_conn.go", "if c.progress() != before {", "if false && c.progress() != before {"}},
	},
}
