package pod

import "slices"

// State is a pod's state in rkt's words.
type State string

// The states.
const (
	Embryo        State = "embryo"
	Preparing     State = "preparing"
	Prepared      State = "prepared"
	Running       State = "running"
	Exited        State = "exited"
	ExitedGarbage State = "exited garbage"
	Garbage       State = "garbage"
)

// Phase is what the table says about one app, or about a sandbox.
type Phase string

// The phases. CRI has a word for those that it lists.
const (
	// Unlisted pods are being made or being deleted.
	Unlisted Phase = "unlisted"
	// Created is prepared and not started.
	Created Phase = "created"
	// Starting is accepted and not yet running.
	Starting Phase = "starting"
	// Up is a running app with its monitor, or a sandbox that is ready.
	Up Phase = "running"
	// Unmonitored is a running app whose monitor is gone: its exit code will be lost.
	Unmonitored Phase = "unmonitored"
	// Draining is an app that ended and whose output is still being written.
	Draining Phase = "draining"
	// Lost is an app that ended without a record; whoever finds it writes one.
	Lost Phase = "lost"
	// Ended has an exit record, or is a sandbox that is not ready.
	Ended Phase = "ended"
)

// Life is what the kernel says about a process.
type Life int

// Either stands in the table for what does not matter.
const (
	Either Life = iota
	Alive
	Gone
)

func lifeOf(alive bool) Life { //nolint:revive // a conversion, no control
	if alive {
		return Alive
	}
	return Gone
}

// Row is a row of the state table.
type Row struct {
	Place Place
	// Sandbox rows are about a sandbox, the others about an app.
	Sandbox bool
	// Recorded says whether there is an exit record; for a sandbox, whether it is ready.
	Recorded Answer
	// Started says whether the app's process was ever seen to run.
	Started       Answer
	Init, Monitor Life
	Phase         Phase
}

// Answer is a yes, a no, or a dash in the table.
type Answer int

// Dash stands in the table for what does not matter.
const (
	Dash Answer = iota
	Yes
	No
)

func answer(b bool) Answer { //nolint:revive // a conversion, no control
	if b {
		return Yes
	}
	return No
}

// Table is the state table of docs/pod-lifecycle.md: the first row that fits
// decides. It is the only place where a state is derived.
var Table = [...]Row{
	{Nowhere, false, Dash, Dash, Either, Either, Unlisted},
	{Nowhere, true, Dash, Dash, Either, Either, Unlisted},
	{InPrepare, false, Dash, Dash, Either, Either, Unlisted},
	{InPrepare, true, Dash, Dash, Either, Either, Unlisted},
	{InPrepared, false, Dash, Dash, Either, Either, Created},
	{InPrepared, true, Dash, Dash, Either, Either, Created},
	{InRun, false, Yes, Dash, Either, Either, Ended},
	{InRun, false, No, No, Either, Either, Starting},
	{InRun, false, No, Yes, Alive, Alive, Up},
	{InRun, false, No, Yes, Alive, Gone, Unmonitored},
	{InRun, false, No, Yes, Gone, Alive, Draining},
	{InRun, false, No, Yes, Gone, Gone, Lost},
	{InRun, true, Yes, Dash, Either, Either, Up},
	{InRun, true, No, Dash, Either, Either, Ended},
	{InExitedGarbage, false, Dash, Dash, Either, Either, Unlisted},
	{InExitedGarbage, true, Dash, Dash, Either, Either, Unlisted},
	{InGarbage, false, Dash, Dash, Either, Either, Unlisted},
	{InGarbage, true, Dash, Dash, Either, Either, Unlisted},
}

// Transition leads from one state of a pod to another. In run a state is a phase of the
// table; elsewhere the place says all.
type Transition struct {
	From      Place
	FromPhase Phase // only in run
	To        Place
	ToPhase   Phase // only in run
	Sandbox   bool  // no app's
}

// Transitions are all that there are of Table's states, as docs/pod-lifecycle.md has them
// with the test of each. MoveTo refuses every other move of a link. What happens in run is
// no move: processes end and records are written.
var Transitions = [...]Transition{
	{From: Nowhere, To: InPrepare},
	{From: InPrepare, To: InPrepared},
	{From: InPrepare, To: InGarbage},
	{From: InPrepare, To: Nowhere},
	{From: InPrepared, To: InRun, ToPhase: Starting},
	{From: InPrepared, To: InRun, ToPhase: Ended},
	{From: InPrepared, To: InGarbage},
	{From: InRun, FromPhase: Starting, To: InPrepared},
	{From: InRun, FromPhase: Starting, To: InRun, ToPhase: Up},
	{From: InRun, FromPhase: Starting, To: InRun, ToPhase: Unmonitored},
	{From: InRun, FromPhase: Starting, To: InRun, ToPhase: Ended},
	{From: InRun, FromPhase: Up, To: InRun, ToPhase: Unmonitored},
	{From: InRun, FromPhase: Up, To: InRun, ToPhase: Draining},
	{From: InRun, FromPhase: Up, To: InRun, ToPhase: Lost},
	{From: InRun, FromPhase: Unmonitored, To: InRun, ToPhase: Lost},
	{From: InRun, FromPhase: Draining, To: InRun, ToPhase: Lost},
	{From: InRun, FromPhase: Lost, To: InRun, ToPhase: Ended},
	{From: InRun, FromPhase: Ended, To: InRun, ToPhase: Up, Sandbox: true},
	{From: InRun, FromPhase: Up, To: InRun, ToPhase: Ended, Sandbox: true},
	{From: InRun, FromPhase: Ended, To: InExitedGarbage},
	{From: InRun, FromPhase: Lost, To: InGarbage},
	{From: InExitedGarbage, To: Nowhere},
	{From: InGarbage, To: Nowhere},
}

// mayMove says whether a link may be moved from one place to another.
func mayMove(from, to Place) bool {
	return slices.ContainsFunc(Transitions[:], func(t Transition) bool { return t.From == from && t.To == to })
}

func (r Row) fits(f Row) bool {
	return r.Place == f.Place && r.Sandbox == f.Sandbox &&
		(r.Recorded == Dash || r.Recorded == f.Recorded) &&
		(r.Started == Dash || r.Started == f.Started) &&
		(r.Init == Either || r.Init == f.Init) &&
		(r.Monitor == Either || r.Monitor == f.Monitor)
}

// PhaseOf looks facts up in the table.
func PhaseOf(facts Row) Phase {
	for _, r := range Table {
		if r.fits(facts) {
			return r.Phase
		}
	}
	return Unlisted
}

// AppPhase says what an app of the pod does, by the table.
func (p *Pod) AppPhase(app string) Phase {
	_, recorded := p.Exits[app]
	s, started := p.Started[app]
	f := Row{Place: p.Place, Recorded: answer(recorded), Started: answer(started)}
	switch {
	case p.Place == InRun && !p.inBoot:
		// It was running, or about to, when the machine went down.
		f.Started, f.Init, f.Monitor = Yes, Gone, Gone
	case started && !recorded:
		f.Init, f.Monitor = lifeOf(s.Init.Alive()), lifeOf(s.Monitor.Alive())
	}
	return PhaseOf(f)
}

// SandboxPhase says what the namespaces of a sandbox, or of a pod of the command
// line, are, by the table.
func (p *Pod) SandboxPhase() Phase {
	return PhaseOf(Row{Place: p.Place, Sandbox: true, Recorded: answer(p.Ready)})
}

// State is the pod's state in rkt's words.
func (p *Pod) State() State {
	switch p.Place {
	case Nowhere:
		return Embryo
	case InPrepare:
		return Preparing
	case InPrepared:
		return Prepared
	case InExitedGarbage:
		return ExitedGarbage
	case InGarbage:
		return Garbage
	}
	if len(p.Record.Apps) == 0 {
		if p.SandboxPhase() == Up {
			return Running
		}
		return Exited
	}
	for _, a := range p.Record.Apps {
		if ph := p.AppPhase(a.Name); ph != Ended && ph != Lost {
			return Running
		}
	}
	return Exited
}
