package register

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

// formation is how a member starts.
type formation struct {
	join  bool   // into a register that exists
	alone bool   // a new register of this member only, without any data
	peers []Peer // of the register, with either
}

const (
	formEvery   = 300 * time.Millisecond
	formTimeout = 2 * time.Second
	membersPath = "/members" // of etcd, for other members
)

// unformed is what a member answers that has not become part of a register.
type unformed struct {
	Name    string `json:"name"`
	Cluster string `json:"cluster"`
	Peers   []Peer `json:"peers"`
}

// etcdMember is one of those that etcd answers at membersPath.
type etcdMember struct {
	ID         uint64   `json:"id"`
	PeerURLs   []string `json:"peerURLs"`
	ClientURLs []string `json:"clientURLs"` // empty until it has started once
	Name       string   `json:"name"`
	IsLearner  bool     `json:"isLearner"`
}

// view is what another member knows; one of the two is set.
type view struct {
	unformed *unformed
	members  []etcdMember
}

// form finds out how to start. A member with data simply starts. One without
// asks all others: if the register exists and expects this member, it joins; if
// it had already been a member, its vote is worth nothing without its data, and
// it is refused; if no other member has data either, and all of them say so,
// they make a new register. A member that does not answer might have data, so
// it is waited for.
func (m *Member) form(ctx context.Context) (formation, error) {
	if m.Config.Self() == (Peer{}) {
		return formation{}, fmt.Errorf("node %s is not one of the register's members", m.Config.Name)
	}
	if m.initialized() {
		return formation{}, nil
	}
	if m.Config.Force {
		return formation{alone: true, peers: []Peer{m.Config.Self()}}, nil
	}
	stop, err := m.answerUnformed()
	if err != nil {
		return formation{}, err
	}
	defer stop()
	t := time.NewTicker(formEvery)
	defer t.Stop()
	for said := ""; ; {
		how, text, err := m.judge(m.askAll(ctx))
		phase := Forming
		var refused *RefusedError
		switch {
		case errors.As(err, &refused): // until somebody has acted
			phase, text = Refused, err.Error()
		case err != nil || text == "":
			return how, err
		}
		if text != said {
			m.tell(phase, text)
			said = text
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return formation{}, nil
		}
	}
}

// judge says how to start, or in a text what is waited for.
func (m *Member) judge(views map[string]view, failed map[string]error) (how formation, wait string, err error) {
	for _, v := range views {
		if len(v.members) > 0 {
			how, err = m.judgeFormed(v.members)
			return how, "", err
		}
	}
	var missing []string
	for _, p := range m.Config.Peers {
		if p.Name == m.Config.Name {
			continue
		}
		v, ok := views[p.Name]
		switch {
		case !ok:
			missing = append(missing, fmt.Sprintf("%s at %s (%v)", p.Name, p.Addr, failed[p.Name]))
		case v.unformed == nil:
			missing = append(missing, fmt.Sprintf("%s, which is starting", p.Name))
		case v.unformed.Name != p.Name:
			missing = append(missing, fmt.Sprintf("%s at %s, where %s answers", p.Name, p.Addr, v.unformed.Name))
		case !samePeers(v.unformed.Peers, m.Config.Peers):
			missing = append(missing, fmt.Sprintf("%s, whose config lists other members (%s)", p.Name, peerList(v.unformed.Peers)))
		}
	}
	if len(missing) > 0 {
		return how, "the register is formed when all its members are up; waiting for " + strings.Join(missing, "; "), nil
	}
	return how, "", nil
}

// judgeFormed judges what the members of a register say that exists.
func (m *Member) judgeFormed(members []etcdMember) (formation, error) {
	me := "https://" + m.Config.Self().Addr
	how := formation{join: true}
	i := slices.IndexFunc(members, func(x etcdMember) bool { return slices.Contains(x.PeerURLs, me) })
	if i < 0 {
		return how, &RefusedError{
			Reason: fmt.Sprintf("the register exists and does not know a member at %s", m.Config.Self().Addr),
			Remedy: fmt.Sprintf("On a node that is a member run: slotfs register add %s %s", m.Config.Name, m.Config.Self().Addr)}
	}
	if len(members[i].ClientURLs) > 0 {
		return how, &RefusedError{
			Reason: fmt.Sprintf("%s holds no data, but %s has been a member of the register: a member that forgot how it voted must not vote again", m.Config.Dir, m.Config.Name),
			Remedy: fmt.Sprintf("If its disk is not mounted, mount it and restart. Else replace the member, on another node: slotfs register remove %s && slotfs register add %s %s",
				m.Config.Name, m.Config.Name, m.Config.Self().Addr)}
	}
	for j, x := range members {
		if len(x.PeerURLs) == 0 {
			continue
		}
		name := x.Name
		if j == i {
			name = m.Config.Name
		} else if name == "" {
			name = fmt.Sprintf("member-%x", x.ID)
		}
		how.peers = append(how.peers, Peer{name, strings.TrimPrefix(x.PeerURLs[0], "https://")})
	}
	if members[i].Name == m.Config.Name && samePeers(how.peers, m.Config.Peers) {
		// One of the first members, and the last of them to start. To join would
		// need a register that has a majority already.
		return formation{}, nil
	}
	return how, nil
}

// putAside moves the data of a member away that was removed, if the others
// know a register without the member called id.
func (m *Member) putAside(ctx context.Context, id uint64) (string, bool) {
	views, _ := m.askAll(ctx)
	for _, v := range views {
		if len(v.members) == 0 || slices.ContainsFunc(v.members, func(x etcdMember) bool { return x.ID == id }) {
			continue
		}
		aside := filepath.Join(m.Config.Dir, "removed-"+time.Now().UTC().Format("20060102T150405.000"))
		if err := os.Rename(filepath.Join(m.Config.Dir, "member"), aside); err != nil {
			m.Log.Error("put the data of the removed register member aside", "err", err)
			return "", false
		}
		return aside, true
	}
	return "", false
}

func samePeers(a, b []Peer) bool {
	return len(a) == len(b) && !slices.ContainsFunc(a, func(p Peer) bool { return !slices.Contains(b, p) })
}

func peerList(list []Peer) string {
	var out []string
	for _, p := range list {
		out = append(out, p.Name+"="+p.Addr)
	}
	return strings.Join(out, ", ")
}

// answerUnformed answers other members on our address until stop is called,
// which frees it.
func (m *Member) answerUnformed() (stop func(), err error) {
	l, err := net.Listen("tcp", m.Config.Listen)
	if err != nil {
		return nil, fmt.Errorf("listen for the register's members: %w", err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc(membersPath, func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusServiceUnavailable)
		// The one who asks notices if it does not arrive.
		_ = json.NewEncoder(w).Encode(unformed{m.Config.Name, m.Config.Cluster, m.Config.Peers})
	})
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: formTimeout, TLSConfig: m.Server.Clone(), ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)}
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := srv.ServeTLS(l, "", ""); !errors.Is(err, http.ErrServerClosed) {
			m.Log.Error("answer the register's members", "err", err)
		}
	})
	return func() { srv.Close(); wg.Wait() }, nil
}

// askAll asks all other members at once.
func (m *Member) askAll(ctx context.Context) (map[string]view, map[string]error) {
	ctx, cancel := context.WithTimeout(ctx, formTimeout)
	defer cancel()
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: m.Client.Clone(), DisableKeepAlives: true}}
	var mu sync.Mutex
	views, failed := map[string]view{}, map[string]error{}
	var wg sync.WaitGroup
	for _, p := range m.Config.Peers {
		if p.Name == m.Config.Name {
			continue
		}
		wg.Go(func() {
			v, err := askMembers(ctx, client, p.Addr)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				failed[p.Name] = err
			} else {
				views[p.Name] = v
			}
		})
	}
	wg.Wait()
	return views, failed
}

func askMembers(ctx context.Context, client *http.Client, addr string) (v view, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+addr+membersPath, nil)
	if err != nil {
		return v, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return v, unwrapURL(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return v, err
	}
	switch resp.StatusCode {
	case http.StatusOK:
		err = json.Unmarshal(body, &v.members)
	case http.StatusServiceUnavailable:
		v.unformed = &unformed{}
		err = json.Unmarshal(body, v.unformed)
	default:
		err = fmt.Errorf("it answered %s", resp.Status)
	}
	return v, err
}

// unwrapURL leaves out what the caller knows: method and address.
func unwrapURL(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		err = u.Err
	}
	var op *net.OpError
	if errors.As(err, &op) && op.Err != nil {
		return op.Err
	}
	return err
}
