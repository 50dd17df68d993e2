package register

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"slotfs/repl"
)

// MemberInfo is a member as the others know it.
type MemberInfo struct {
	ID      uint64 `json:"id"`
	Name    string `json:"name"`             // of its node; empty until it has started once
	Peer    string `json:"peer"`             // host:port, for members
	Client  string `json:"client,omitempty"` // host:port
	Learner bool   `json:"learner,omitempty"`
}

// LocalStatus is what one member says about itself, which may be old.
type LocalStatus struct {
	ID      uint64
	Leader  uint64 // 0: it knows of none
	Learner bool
	Bytes   int64    // of its file
	Errors  []string // such as a full disk
}

const scheme = "https://"

// Members reads the list of members; linearizable, as a change needs it, which
// may have to wait for an election; or, if local is set, from whoever answers.
func (e *Etcd) Members(ctx context.Context, local bool) ([]MemberInfo, error) {
	if local {
		return e.localMembers(ctx)
	}
	ctx, cancel := context.WithTimeout(ctx, changeTimeout)
	defer cancel()
	r, err := ask(ctx, e, func(ctx context.Context, c *clientv3.Client) (*clientv3.MemberListResponse, error) {
		return c.MemberList(ctx)
	})
	if err != nil {
		return nil, fmt.Errorf("list register members: %w", err)
	}
	return infos(r.Members), nil
}

// localMembers asks one endpoint after the other for the list that it has. An
// answer says nothing about a majority.
func (e *Etcd) localMembers(ctx context.Context) ([]MemberInfo, error) {
	ctx, cancel := context.WithTimeout(ctx, repl.RegisterPatience)
	defer cancel()
	err := errNoEndpoints
	for _, p := range e.ordered() {
		var c *clientv3.Client
		if c, err = e.client(ctx, p); err != nil {
			continue
		}
		actx, stop := context.WithTimeout(ctx, hedge)
		var r *clientv3.MemberListResponse
		r, err = c.MemberList(actx, clientv3.WithSerializable())
		stop()
		if err == nil {
			return infos(r.Members), nil
		}
	}
	return nil, fmt.Errorf("list register members: %w", err)
}

func infos(list []*pb.Member) []MemberInfo {
	var out []MemberInfo
	for _, m := range list {
		i := MemberInfo{ID: m.ID, Name: m.Name, Learner: m.IsLearner}
		if len(m.PeerURLs) > 0 {
			i.Peer = strings.TrimPrefix(m.PeerURLs[0], scheme)
		}
		if len(m.ClientURLs) > 0 {
			i.Client = strings.TrimPrefix(m.ClientURLs[0], scheme)
		}
		out = append(out, i)
	}
	slices.SortFunc(out, func(a, b MemberInfo) int { return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Peer, b.Peer)) })
	return out
}

// at gives the connection to one endpoint, which must be in use.
func (e *Etcd) at(ctx context.Context, url string) (*clientv3.Client, error) {
	e.mu.Lock()
	i := slices.IndexFunc(e.endpoints, func(p *endpoint) bool { return p.url == url })
	if i < 0 {
		e.mu.Unlock()
		return nil, errNoEndpoints
	}
	p := e.endpoints[i]
	e.mu.Unlock()
	return e.client(ctx, p)
}

// StatusAt asks one endpoint how it is, whether or not there is a majority.
func (e *Etcd) StatusAt(ctx context.Context, url string) (LocalStatus, error) {
	c, err := e.at(ctx, url)
	if err != nil {
		return LocalStatus{}, err
	}
	r, err := pb.NewMaintenanceClient(c.ActiveConnection()).Status(ctx, &pb.StatusRequest{})
	if err != nil {
		return LocalStatus{}, fmt.Errorf("ask the member at %s: %w", url, err)
	}
	return LocalStatus{ID: r.Header.MemberId, Leader: r.Leader, Learner: r.IsLearner, Bytes: r.DbSize, Errors: r.Errors}, nil
}

// Statuses asks all endpoints at once; those that don't answer in time are
// left out.
func (e *Etcd) Statuses(ctx context.Context, limit time.Duration) map[string]LocalStatus {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var mu sync.Mutex
	out := map[string]LocalStatus{}
	var wg sync.WaitGroup
	for _, url := range e.Endpoints() {
		wg.Go(func() {
			if s, err := e.StatusAt(ctx, url); err == nil {
				mu.Lock()
				out[url] = s
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return out
}

// GiveLead asks the leader, which must be at url, to let another member lead.
func (e *Etcd) GiveLead(ctx context.Context, url string, to uint64) error {
	c, err := e.at(ctx, url)
	if err != nil {
		return err
	}
	_, err = pb.NewMaintenanceClient(c.ActiveConnection()).MoveLeader(ctx, &pb.MoveLeaderRequest{TargetID: to})
	if err != nil {
		return fmt.Errorf("give the register's lead away: %w", err)
	}
	return nil
}

// AddLearner adds a member that has no vote yet. It gets one by Promote when
// it has caught up.
func (e *Etcd) AddLearner(ctx context.Context, peer string) ([]MemberInfo, error) {
	r, err := change(ctx, e, func(ctx context.Context, c *clientv3.Client) (*clientv3.MemberAddResponse, error) {
		return c.MemberAddAsLearner(ctx, []string{scheme + peer})
	})
	if errors.Is(err, rpctypes.ErrPeerURLExist) {
		return e.Members(ctx, false) // an attempt before, without an answer, did it
	}
	if err != nil {
		return nil, fmt.Errorf("add a register member: %w", err)
	}
	return infos(r.Members), nil
}

// Promote gives a member a vote that has none.
func (e *Etcd) Promote(ctx context.Context, id uint64) error {
	_, err := change(ctx, e, func(ctx context.Context, c *clientv3.Client) (*clientv3.MemberPromoteResponse, error) {
		return c.MemberPromote(ctx, id)
	})
	if err != nil && !errors.Is(err, rpctypes.ErrMemberNotLearner) {
		return fmt.Errorf("give the register member its vote: %w", err)
	}
	return nil
}

// Remove removes a member.
func (e *Etcd) Remove(ctx context.Context, id uint64) ([]MemberInfo, error) {
	r, err := change(ctx, e, func(ctx context.Context, c *clientv3.Client) (*clientv3.MemberRemoveResponse, error) {
		return c.MemberRemove(ctx, id)
	})
	if errors.Is(err, rpctypes.ErrMemberNotFound) {
		return e.Members(ctx, false)
	}
	if err != nil {
		return nil, fmt.Errorf("remove a register member: %w", err)
	}
	return infos(r.Members), nil
}

// changeTimeout bounds a change of the members: etcd refuses some until it has
// seen all of them for five seconds.
const changeTimeout = 10 * time.Second

// change does f at one endpoint after the other, never twice at a time: a
// refusal is an answer.
func change[T any](ctx context.Context, e *Etcd, f func(context.Context, *clientv3.Client) (T, error)) (T, error) {
	ctx, cancel := context.WithTimeout(ctx, changeTimeout)
	defer cancel()
	var zero T
	last := errNoEndpoints
	for {
		for _, p := range e.ordered() {
			c, err := e.client(ctx, p)
			if err == nil {
				var v T
				actx, stop := context.WithTimeout(ctx, 2*attempt)
				v, err = f(actx, c)
				stop()
				if err == nil {
					return v, nil
				}
				if refusal(err) {
					return zero, err
				}
			}
			last = err
		}
		select {
		case <-time.After(4 * pause):
		case <-ctx.Done():
			return zero, last
		}
	}
}

// refusal reports whether repeating the request would not help.
func refusal(err error) bool {
	var e rpctypes.EtcdError
	if !errors.As(err, &e) {
		return false
	}
	for _, passing := range []error{rpctypes.ErrUnhealthy, rpctypes.ErrNoLeader, rpctypes.ErrNotLeader, rpctypes.ErrLeaderChanged,
		rpctypes.ErrTimeout, rpctypes.ErrTimeoutDueToLeaderFail, rpctypes.ErrTimeoutDueToConnectionLost, rpctypes.ErrStopped, rpctypes.ErrMemberLearnerNotReady} {
		if errors.Is(err, passing) {
			return false
		}
	}
	return e.Code().String() != "Unavailable"
}
