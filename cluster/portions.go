package cluster

import "github.com/hashicorp/raft"

// portionBytesMax bounds the entries of one request to a server: what a link of a
// megabyte a second carries within raft's time-out.
const portionBytesMax = 2 << 20

// portions sends no more in one request than a link may carry in time. Raft counts
// entries only, of which 64 may have 64 MiB: a server that lacked them would refuse
// such a request, or its answer would come too late, and raft would send it again, for
// ever. What is cut off goes with the next request, as raft looks at what was sent.
type portions struct{ raftNetwork }

func (p portions) AppendEntries(to raft.ServerID, addr raft.ServerAddress, req *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	cutPortion(req)
	return p.raftNetwork.AppendEntries(to, addr, req, resp)
}

func (p portions) AppendEntriesPipeline(to raft.ServerID, addr raft.ServerAddress) (raft.AppendPipeline, error) {
	pipeline, err := p.raftNetwork.AppendEntriesPipeline(to, addr)
	if err != nil {
		return nil, err
	}
	return pipelinePortions{pipeline}, nil
}

type pipelinePortions struct{ raft.AppendPipeline }

func (p pipelinePortions) AppendEntries(req *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) (raft.AppendFuture, error) {
	cutPortion(req)
	return p.AppendPipeline.AppendEntries(req, resp)
}

// cutPortion leaves the first entries of req, one at least.
func cutPortion(req *raft.AppendEntriesRequest) {
	bytes := 0
	for i, e := range req.Entries {
		if bytes += len(e.Data) + len(e.Extensions); bytes > portionBytesMax && i > 0 {
			req.Entries = req.Entries[:i]
			return
		}
	}
}
