//! Mains and battery, as Windows tells them.

use super::Supply;

/// Of this machine; none on another system.
#[cfg(windows)]
#[allow(unsafe_code)]
pub(super) fn supplies() -> Vec<Supply> {
    /// `SYSTEM_POWER_STATUS` of `winbase.h`.
    #[repr(C)]
    #[derive(Default)]
    struct Status {
        ac_line: u8,
        battery_flag: u8,
        percent: u8,
        system_flag: u8,
        seconds_left: u32,
        seconds_full: u32,
    }
    #[link(name = "kernel32")]
    unsafe extern "system" {
        #[link_name = "GetSystemPowerStatus"]
        fn get_system_power_status(status: *mut Status) -> i32;
    }
    let mut status = Status::default();
    // SAFETY: the function writes the structure it is given, whose layout is the documented one, and keeps no pointer.
    let done = unsafe { get_system_power_status(&mut status) };
    if done == 0 { Vec::new() } else { told(status.ac_line, status.battery_flag, status.percent) }
}

/// Of this machine; none on another system.
#[cfg(not(windows))]
pub(super) fn supplies() -> Vec<Supply> {
    Vec::new()
}

/// What the fields mean: 255 is unknown in each; of the battery's flags 8 is charging, 128 no battery.
#[cfg(any(windows, test))]
fn told(ac_line: u8, battery_flag: u8, percent: u8) -> Vec<Supply> {
    let supply = |name: &str, kind: &str| Supply {
        name: name.into(),
        kind: kind.into(),
        status: None,
        online: None,
        percent: None,
        watts: None,
    };
    let mut found = Vec::new();
    if ac_line <= 1 {
        found.push(Supply { online: Some(ac_line == 1), ..supply("AC", "Mains") });
    }
    if battery_flag != 255 && battery_flag & 128 == 0 {
        let status = match (battery_flag & 8 != 0, ac_line) {
            (true, _) => "Charging",
            (false, 0) => "Discharging",
            (false, 1) => "Not charging",
            _ => "Unknown",
        };
        let percent = (percent <= 100).then_some(f64::from(percent));
        found.push(Supply { status: Some(status.into()), percent, ..supply("battery", "Battery") });
    }
    found
}

#[cfg(test)]
mod tests {
    use super::told;

    #[test]
    fn laptops_and_desktops() {
        let laptop = told(0, 1, 83);
        assert_eq!((laptop[0].online, laptop[1].percent), (Some(false), Some(83.0)));
        assert_eq!(laptop[1].status.as_deref(), Some("Discharging"));
        assert_eq!(told(1, 9, 83)[1].status.as_deref(), Some("Charging"));
        assert_eq!(told(1, 128, 255).len(), 1, "a desktop has no battery");
        assert_eq!(told(255, 255, 255), []);
        assert_eq!(told(255, 0, 200)[0].percent, None);
    }
}
