//! Devices that an operator removes: what the run, the fleet and the broker make of it.

use super::*;

fn request(name: &str, force: bool) -> RemoveDevice {
    RemoveDevice { device: device(name), by: "ann".to_owned(), reason: "sold".to_owned(), force }
}

fn birth_topic(name: &str) -> String {
    Topic::Birth(device(name)).text(&fleet())
}

impl World {
    fn remove(&mut self, name: &str, force: bool) -> Result<Removal, String> {
        let removed = self.hub.remove_device(request(name, force), Timestamp(self.now)).unwrap();
        removed.map(|(removal, effects)| {
            self.carry_out(effects);
            removal
        })
    }

    fn leave(&mut self, name: &str) {
        self.say(&Topic::Birth(device(name)), &Message::Gone(Gone { boot: BootId(3), clean: false }));
    }

    /// Says that the broker dropped the retained message of a device.
    fn drop_retained(&mut self, name: &str) {
        self.link(vec![LinkEvent::Message { topic: birth_topic(name), payload: Vec::new() }]);
    }

    fn names(&mut self) -> Vec<String> {
        self.progress().devices.iter().map(|shown| shown.device.to_string()).collect()
    }

    fn journalled(&self) -> Vec<Removal> {
        self.hub.store.removals().unwrap()
    }
}

#[test]
fn an_offline_device_is_removed_and_its_message_at_the_broker_too() {
    let mut world = World::new();
    world.birth("a", PACK);
    world.birth("b", PACK);
    let refused = world.remove("a", false).unwrap_err();
    assert!(refused.contains("a is online") && refused.contains("--force"), "{refused}");
    assert!(world.remove("c", false).unwrap_err().contains("no device of the fleet is called c"));
    world.leave("a");
    world.now = 70;
    let removal = world.remove("a", false).unwrap();
    assert_eq!((removal.at_ms, removal.boot, removal.was_online), (70, Some(3), false));
    assert_eq!((world.names(), &world.cleared), (vec!["b".to_owned()], &vec![birth_topic("a")]));
    assert!(world.remove("a", false).unwrap_err().contains("was removed on"));
    world.now = 90;
    world.drop_retained("a");
    assert_eq!(world.journalled(), [Removal { cleared_ms: Some(90), ..removal }]);
    assert_eq!(world.hub.refusals.by_label(), BTreeMap::new(), "an empty message is no fault");
    world.restart();
    assert_eq!((world.names().len(), world.cleared.len()), (0, 1), "what is dropped is not dropped again");
}

#[test]
fn a_removed_device_that_comes_back_is_a_new_member() {
    let mut world = World::new();
    world.birth("a", PACK);
    world.leave("a");
    world.remove("a", false).unwrap();
    world.now = 80;
    world.birth("a", PACK);
    let shown = world.progress().devices.remove(0);
    assert!(shown.note.as_deref().unwrap().contains("is a new member: it came back after ann removed it"), "{shown:?}");
    let removal = world.journalled().remove(0);
    assert_eq!((removal.returned_ms, removal.cleared_ms), (Some(80), Some(80)), "its birth replaced the old message");
    world.restart();
    assert_eq!(world.cleared.len(), 1, "the message of a member stays");
    world.birth("a", PACK);
    assert_eq!(world.progress().devices[0].note, None, "said once");
}

#[test]
fn a_device_that_was_removed_while_online_stays_away_until_it_connects_again() {
    let mut world = World::new();
    world.birth("a", PACK);
    world.remove("a", true).unwrap();
    // The process ends before the broker has dropped the birth, so the broker still has it.
    world.restart();
    world.cleared.clear();
    world.birth("a", PACK);
    assert_eq!(world.names(), [""; 0], "the old birth is no return");
    world.drop_retained("a");
    // The device loses its connection: its last will must not bring it back.
    world.leave("a");
    assert_eq!((world.names(), &world.cleared), (vec![], &vec![birth_topic("a")]));
    world.drop_retained("a");
    world.birth("a", PACK);
    assert_eq!(world.names(), ["a"]);
}

#[test]
fn a_broker_that_keeps_the_message_is_asked_three_times_and_then_named() {
    let mut world = World::new();
    world.birth("a", PACK);
    world.leave("a");
    world.remove("a", false).unwrap();
    while let Some(due) = world.hub.deadline() {
        world.now = due.0;
        let effects = world.hub.tick(due).unwrap();
        world.carry_out(effects);
    }
    assert_eq!((world.cleared.len(), world.now), (3, 30_000));
    let warning = world.progress().warnings.remove(0);
    assert!(warning.contains("keeps the last message of a") && warning.contains("d/a/up/birth"), "{warning}");
    world.link(vec![LinkEvent::Up]);
    assert_eq!(world.cleared.len(), 4, "a new connection is a new chance");
    world.drop_retained("a");
    assert_eq!((world.progress().warnings.len(), world.hub.deadline()), (0, None));
}

#[test]
fn a_round_does_not_wait_for_a_removed_device_and_its_update_is_refused() {
    let mut world = World::training_with(RunSettings { quorum: 1, ..settings() });
    world.now = 20_000;
    assert_eq!(world.upload("a", &update(1.0)), TransferMessage::Done);
    assert_eq!(world.merges, [], "the round waits for b");
    world.remove("b", true).unwrap();
    let round = world.merges.remove(0);
    assert_eq!(round.updates.len(), 1);
    let offer = world.offer("b", &update(2.0), vec![0, 1]);
    world.transfer("b", offer.id(), TransferMessage::Offer(offer));
    assert!(matches!(world.last_transfer("b"), TransferMessage::Refused { .. }), "{:?}", world.last_transfer("b"));
    let entries = world.hub.store.entries(RUN).unwrap();
    let is_out =
        |entry: &Entry| matches!(&entry.record, Record::DeviceOut { reason, .. } if reason.contains("removed"));
    assert!(entries.iter().any(is_out), "the journal has the reason");
}

#[test]
fn a_coordinator_that_restarts_waits_for_no_removed_device() {
    let mut world = World::new();
    world.birth("a", PACK);
    world.birth("b", PACK);
    world.now = 20_000;
    let settings = RunSettings { quorum: 1, ..settings() };
    let effects = world.hub.start_run(RUN, None, settings, Timestamp(world.now)).unwrap().unwrap();
    world.carry_out(effects);
    world.leave("b");
    // Killed after the removal is in the journal, and before the run knows it.
    let removal = world.hub.removal(request("b", false), Timestamp(world.now)).unwrap();
    world.hub.store.add_removal(&removal).unwrap();
    world.restart();
    world.birth("a", PACK);
    world.evaluate("a");
    assert!(matches!(world.command("a").order, Order::Train(_)), "the evaluation ended without b");
}
