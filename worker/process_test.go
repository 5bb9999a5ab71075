package worker

import (
	"sync"

	"github.com/baton-cluster/baton/wire"
)

// process is a worker's process, which a test can stop like SIGSTOP does: what
// arrives meanwhile waits in its sockets.
type process struct {
	mu      sync.Mutex
	stopped chan struct{} // not nil: closed when it goes on
	holds   bool          // answers and events wait in later
	later   [2][]func()   // from the leader, and from the local state machine
}

const (
	fromLeader = iota
	fromLocal
)

func (p *process) stop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stopped == nil {
		p.stopped, p.holds = make(chan struct{}), true
	}
}

// goOn lets frames flow again; what the log told meanwhile comes with hear.
func (p *process) goOn() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stopped != nil {
		close(p.stopped)
		p.stopped = nil
	}
}

// hear brings what the log told. Of the leader's answers and the local state
// machine's events either may come first; first chooses, one at a time.
func (p *process) hear(first func() int) {
	for {
		p.mu.Lock()
		from := first()
		if len(p.later[from]) == 0 {
			from = 1 - from
		}
		if len(p.later[from]) == 0 {
			p.holds = false
			p.mu.Unlock()
			return
		}
		f := p.later[from][0]
		p.later[from] = p.later[from][1:]
		p.mu.Unlock()
		f()
	}
}

// point is where a goroutine of the process may be stopped.
func (p *process) point() {
	for {
		p.mu.Lock()
		ch := p.stopped
		p.mu.Unlock()
		if ch == nil {
			return
		}
		<-ch
	}
}

// deliver runs f, in the order of those from there, when the process hears of it.
func (p *process) deliver(from int, f func()) {
	p.mu.Lock()
	if p.holds {
		p.later[from] = append(p.later[from], f)
		p.mu.Unlock()
		return
	}
	p.mu.Unlock()
	f()
}

// processLink and processLog are the process's ends.
type processLink struct {
	Link
	p *process
}

func (l processLink) Recv() (*wire.ClientFrame, error) {
	f, err := l.Link.Recv()
	l.p.point()
	return f, err
}

type processLog struct {
	Log
	p *process
}

func (l processLog) Propose(cmds []*wire.Command, done func([]*wire.Result, error)) {
	l.Log.Propose(cmds, func(res []*wire.Result, err error) { l.p.deliver(fromLeader, func() { done(res, err) }) })
}
